"""The counts of a run add up to its texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.base.config import MethodConfig
from pipeline.base.records import ANNOTATION_SCHEMA, Annotation, Call, Cost, Document, Funnel, PhaseWork, Text
from pipeline.storage.counts import COLUMNS, count_rows
from pipeline.storage.row_files import ROWS, read_rows, write_rows

pytestmark = pytest.mark.unit

METHOD = MethodConfig(tools=("QA", "Calculator"))


def text(number: int) -> Text:
    return Text(number, Document(f"a.jsonl#{number}"), "some text")


def calculated(gain: float) -> Call:
    return Call("Calculator", 4, 0.5, "1 + 1", "2", 1.0, 1.0 + gain, None, gain)


def test_counts_add_up_to_the_texts(tmp_path: Path) -> None:
    chosen = Funnel("Calculator", "an equals sign", 3, 30, 9, 8, 2, {"bracket": 21, "tool: deadline": 1})
    drawn = PhaseWork("Calculator", "decode", Cost(4, 0, 20, 5), Cost(5, 1, 30, 5))
    every: dict[str, Any] = {"work": (PhaseWork(None, "empty", Cost(4), Cost(5)), drawn)}
    annotations = [
        Annotation(
            text(1),
            "annotated",
            None,
            (calculated(0.5), calculated(0.49)),
            (Funnel("QA", "every text"), chosen),
            **every,
        ),
        Annotation(text(2), "no_calls", None, (), (Funnel("QA", "no: context: it has 9 tokens"),), **every),
        Annotation(text(3), "no_calls", None, (), (Funnel("QA", "no: context: it has 7 tokens"), chosen)),
        Annotation(text(4), "skipped", "not JSON: line 4"),
        Annotation(text(5), "skipped", "not JSON: line 5"),
        Annotation(text(6), "failed", "LookupError: no such day"),
    ]
    rows = pa.Table.from_pylist([item.to_row() for item in annotations], schema=ANNOTATION_SCHEMA)
    (tmp_path / ROWS).mkdir()
    write_rows(tmp_path / ROWS, rows)
    counts = count_rows(read_rows(tmp_path, COLUMNS), METHOD)
    assert counts.texts == sum(counts.status.values()) == 6
    assert counts.status == {"annotated": 1, "no_calls": 2, "skipped": 2, "failed": 1}
    assert counts.reasons == {"skipped": {"not JSON": 2}, "failed": {"LookupError": 1}}
    assert (counts.calls, counts.token_forwards) == (2, 20)
    assert counts.work == (
        PhaseWork("Calculator", "decode", Cost(8, 0, 40, 10), Cost(10, 2, 60, 10)),
        PhaseWork(None, "empty", Cost(8), Cost(10)),
    )
    question, sums = counts.tools["QA"], counts.tools["Calculator"]
    assert (question.texts, question.selected) == (3, 1)
    assert question.selection == {"no: context": 2, "every text": 1}
    assert (sums.texts, sums.selected, sums.draws, sums.executed, sums.scored) == (2, 2, 60, 16, 4)
    assert (sums.kept, sums.texts_kept) == (1, 1)
    assert sums.discarded == {"bracket": 42, "tool: deadline": 2}
