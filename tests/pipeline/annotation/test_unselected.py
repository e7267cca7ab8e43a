"""Texts that no tool is tried on get, where they are read, the rows that an actor would have written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.fixtures import small_run
from pipeline.annotation.unselected import UnselectedRows, some_texts_are_unselected
from pipeline.base.config import MethodConfig
from pipeline.base.records import ANNOTATION_SCHEMA, Document, Text
from pipeline.storage.row_files import ROWS, parquet_files
from tools_service.base.files import OutputError

pytestmark = pytest.mark.unit

DATED = "http://a.example/2021/03/05/page"
TEXTS = [
    Text(1, Document("a/b.jsonl#1"), "Nothing to count here."),
    Text(2, Document("a/b.jsonl#2"), "27 boys and 4 girls, that is 31 pupils."),
    Text(3, Document("a/b.jsonl#3"), "", "not JSON: at a/b.jsonl#3"),
    Text(4, Document("a/b.jsonl#4", DATED), "Nothing to count here either."),
    Text(5, Document("a/b.jsonl#5", "http://a.example/"), "In 1987 it had 212 members and 9 horses."),
]


class Progress:
    """Counts what it is told, as the actor does."""

    def __init__(self) -> None:
        self.texts: Counter[tuple[str, str]] = Counter()

    @property
    def unselected(self) -> Progress:
        return self

    def remote(self, texts: Counter[tuple[str, str]]) -> None:
        self.texts += texts


@pytest.fixture
def rows(tmp_path: Path) -> UnselectedRows:
    folder = tmp_path / ROWS
    folder.mkdir()
    return UnselectedRows(MethodConfig(tools=("Calculator", "Calendar")), folder, Progress())


def written(rows: UnselectedRows) -> list[dict[str, Any]]:
    return [row for file in parquet_files(rows.rows) for row in pq.read_table(file).to_pylist()]


def test_the_rows_are_those_of_the_annotator(tmp_path: Path) -> None:
    small_run.write_prompts(tmp_path / "prompts")
    method = small_run.method(tmp_path / "prompts")
    folder = tmp_path / ROWS
    folder.mkdir()
    rows = UnselectedRows(method, folder, Progress())
    selected = rows.take(TEXTS)
    rows.write()
    annotations = small_run.local_annotator(tmp_path / "prompts").annotate(TEXTS)
    expected = pa.Table.from_pylist([item.to_row() for item in annotations], schema=ANNOTATION_SCHEMA)
    unselected = [row for row in expected.to_pylist() if row["text_id"] not in {t.text_id for t in selected}]
    assert written(rows) == unselected
    assert [text.text_id for text in selected] == [2, 4]
    assert rows.progress.texts == {("no_calls", ""): 2, ("skipped", "not JSON"): 1}


def test_a_task_writes_many_texts_at_once_and_the_rest_at_its_end(rows: UnselectedRows) -> None:
    texts = [Text(number, Document(f"a#{number}"), "Nothing here.") for number in range(1_500)]
    for first in range(0, len(texts), 64):
        assert rows.take(texts[first : first + 64]) == []
    assert len(parquet_files(rows.rows)) == 1
    rows.write()
    rows.write()
    assert sorted(row["text_id"] for row in written(rows)) == list(range(1_500))
    assert len(parquet_files(rows.rows)) == 2


def test_a_repeated_task_replaces_its_files(rows: UnselectedRows) -> None:
    for copy in (rows, UnselectedRows(rows.method, rows.rows, Progress())):
        copy.take(TEXTS)
        copy.write()
    assert [row["text_id"] for row in written(rows)] == [1, 3, 5]


def test_a_rule_that_fails_leaves_the_text_to_the_actor(tmp_path: Path) -> None:
    rule = {"rule": "tests.pipeline.method.rules:raises"}
    method = MethodConfig.model_validate({"tools": ["Units"], "units": {"select": rule}})
    rows = UnselectedRows(method, tmp_path, Progress())
    assert rows.take(TEXTS[:2]) == TEXTS[:2]


def test_a_folder_that_is_gone_is_an_output_error(rows: UnselectedRows) -> None:
    rows.rows.rmdir()
    rows.take(TEXTS)
    with pytest.raises(OutputError, match="rows: cannot write"):
        rows.write()


@pytest.mark.parametrize(
    ("tools", "unselected"),
    [(("Calculator", "Calendar"), True), (("MT",), True), (("Calculator", "QA"), False)],
)
def test_a_tool_that_takes_every_text_leaves_none_to_write(tools: tuple[str, ...], unselected: bool) -> None:
    assert some_texts_are_unselected(MethodConfig.model_validate({"tools": tools})) is unselected


@pytest.mark.parametrize(
    ("select", "unselected"),
    [
        ({"rule": "tests.pipeline.method.rules:a_bool"}, False),
        ({"pattern": "km"}, True),
        ({"rule": "all"}, False),
    ],
)
def test_a_function_of_a_user_runs_in_actors_only(select: dict[str, str], unselected: bool) -> None:
    """It may kill its process."""
    method = MethodConfig.model_validate({"tools": ["Units"], "units": {"select": select}})
    assert some_texts_are_unselected(method) is unselected
