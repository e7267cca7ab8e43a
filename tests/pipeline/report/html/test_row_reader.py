"""Rows for a report: files that cannot be read are named, and each text counts once."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from pipeline.report.html.row_reader import RowReader
from pipeline.storage.row_files import ROWS
from tests.pipeline.augmentation.test_merge import annotated, annotations, call

pytestmark = pytest.mark.unit


def ids(reader: RowReader) -> list[int]:
    return [row["text_id"] for row in reader.rows(("text_id", "calls"))]


def test_a_file_without_its_end_is_left_out_and_named(tmp_path: Path) -> None:
    folder = annotations(tmp_path, [annotated(number, "text", call("QA", 0, 1.0)) for number in range(6)])
    (folder / ROWS / "a.parquet").write_bytes((folder / ROWS / "0.parquet").read_bytes()[:-9])
    (folder / ROWS / "b.parquet.1.part").write_bytes(b"PAR1")
    reader = RowReader(folder, unfinished=False)
    assert sorted(ids(reader)) == list(range(6))
    assert len(reader.problems) == 1
    assert "a.parquet" in reader.problems[0]
    assert (folder / ROWS / "a.parquet").exists()


def test_a_file_that_a_resumed_run_removes_meanwhile_is_left_out(tmp_path: Path) -> None:
    folder = annotations(tmp_path, [annotated(number, "text") for number in range(6)])
    reader = RowReader(folder, unfinished=True)
    (folder / ROWS / "0.parquet").unlink()
    assert ids(reader) == [1, 3, 5]
    assert len(reader.problems) == 1


def test_in_an_unfinished_run_a_text_of_two_files_counts_once(tmp_path: Path) -> None:
    found = [annotated(number, "text") for number in range(3_000)]
    random.Random(1).shuffle(found)
    folder = annotations(tmp_path / "one", found)
    other = annotations(tmp_path / "other", found[1::3], files=1)
    shutil.copy(other / ROWS / "0.parquet", folder / ROWS / "00.parquet")
    assert sorted(ids(RowReader(folder, unfinished=True))) == list(range(3_000))
    assert len(ids(RowReader(folder, unfinished=False))) == 4_000


def test_a_folder_without_rows_has_none(tmp_path: Path) -> None:
    assert ids(RowReader(tmp_path, unfinished=True)) == []
