"""The records survive the way through Arrow and Parquet."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.records import (
    ANNOTATION_SCHEMA,
    TEXT_SCHEMA,
    Annotation,
    Call,
    Cost,
    Document,
    Funnel,
    PhaseWork,
    Text,
)
from tools_service.contract.declarations import PACKAGED

pytestmark = pytest.mark.unit

DOCUMENT = Document("web/a.jsonl#7", url="http://a.example/2021/03/05/x", title="A", date="2021-03-05")
TEXT = Text(2**63 - 1, DOCUMENT, "12 apples and 30 pears are 42 fruits.\n…")
CALLS = (
    Call("Calculator", 0, 0.25, "12 + 30", "42", 1.0, 3.5, None, 2.5),
    Call("WikiSearch", 27, 0.5, "fruit", "Fruit > A part of a plant.", 1.0, 3.5, 3.0, 2.0),
)
FUNNEL = (
    Funnel("Calculator", "a result announced", 20, 200, 9, 7, 7, {"not closed": 3, "malformed": 2}),
    Funnel("Calendar", "no: no URL"),
)
WORK = (
    PhaseWork("Calculator", "decode", Cost(90, 0, 8_000, 91), Cost(95, 3, 9_000, 91)),
    PhaseWork(None, "empty", Cost(20, 0, 210, 5), Cost(20, 1, 231, 5)),
)
ANNOTATIONS = [
    Annotation(TEXT, "annotated", calls=CALLS, funnel=FUNNEL, work=WORK),
    Annotation(Text(0, Document("web/b.jsonl#1"), ""), "skipped", reason="empty document: no text"),
    Annotation(Text(1, Document("web/b.jsonl#2"), "x"), "failed", reason="non-finite loss"),
]


def test_annotations_survive_parquet(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([each.to_row() for each in ANNOTATIONS], schema=ANNOTATION_SCHEMA)
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [Annotation.from_row(row) for row in rows] == ANNOTATIONS


def test_a_row_has_exactly_the_columns_of_its_schema() -> None:
    row = ANNOTATIONS[0].to_row()
    assert list(row) == ANNOTATION_SCHEMA.names
    call_fields = [field.name for field in ANNOTATION_SCHEMA.field("calls").type.value_type]
    funnel_fields = [field.name for field in ANNOTATION_SCHEMA.field("funnel").type.value_type]
    assert list(row["calls"][0]) == call_fields
    assert list(row["funnel"][0]) == funnel_fields
    work = ANNOTATION_SCHEMA.field("work").type.value_type
    assert list(row["work"][0]) == [field.name for field in work]
    for half in ("lower_bound", "run"):
        assert list(row["work"][0][half]) == [field.name for field in work.field(half).type]


def test_the_largest_text_id_fits_its_column() -> None:
    array = pa.array([TEXT.text_id], TEXT_SCHEMA.field("text_id").type)
    assert array.to_pylist() == [2**63 - 1]


def test_position_0_and_an_absent_l_call_are_kept_apart() -> None:
    row = Annotation.from_row(ANNOTATIONS[0].to_row())
    assert row.calls[0].position == 0
    assert row.calls[0].l_call is None


def test_the_five_tools_are_the_papers() -> None:
    assert PACKAGED == ("QA", "WikiSearch", "Calculator", "Calendar", "MT")
