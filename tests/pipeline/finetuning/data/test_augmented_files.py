"""The files of C*: what is read, what is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.fixtures.small_models import tokenizer
from pipeline.finetuning.data.augmented_files import digest, parquet_row_groups, read_index, read_texts
from pipeline.finetuning.data.examples import choose_uses
from tests.pipeline.finetuning.inputs import configuration, load_examples, rows, write
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit


def test_the_index_counts_the_texts_with_a_call_of_each_tool(tmp_path: Path) -> None:
    made = rows(9)
    named: list[list[str] | None] = [["QA"], ["QA", "MT"], [], None, ["MT"], [], ["QA"], ["QA"], ["QA"]]
    for row, tool_names in zip(made, named, strict=True):
        row["tool_names"] = tool_names
    index = read_index(write(tmp_path / "augmented", [made[:4], made[4:]]))
    assert index.text_ids.tolist() == sorted(row["text_id"] for row in made)
    assert index.by_tool(np.arange(9)) == {"": 2, "MT": 2, "QA": 5}
    # Ids fall, so the first of these are the last rows: without the unknown one and the two before it.
    assert index.by_tool(np.arange(5)) == {"": 1, "MT": 1, "QA": 3}


def test_files_of_earlier_versions_do_not_name_the_tools(tmp_path: Path) -> None:
    folder = write(tmp_path / "augmented", [rows(9)])
    file = folder / "part-00000.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["tool_names"]), file)
    assert read_index(folder).by_tool(np.arange(9)) == {}


def test_texts_that_differ_in_their_calls_only_are_equal(tmp_path: Path) -> None:
    made = rows(3)
    made[2]["plain"] = made[0]["plain"]
    plain = read_index(write(tmp_path / "augmented", [made])).plain
    assert plain[0] == plain[2] != plain[1]  # sorted by id, which falls


def test_row_groups_are_the_files_in_parts(tmp_path: Path) -> None:
    folder = write(tmp_path / "augmented", [rows(20), rows(30)[20:]])
    file = folder / "part-00000.parquet"
    pq.write_table(pq.read_table(file), file, row_group_size=7)
    groups = parquet_row_groups(folder)
    assert [(path.name[:10], number) for path, number in groups] == [
        ("part-00000", 0),
        ("part-00000", 1),
        ("part-00000", 2),
        ("part-00001", 0),
    ]
    whole = [table for path in (file, folder / "part-00001.parquet") for table in read_texts(path)]
    parts = [table for path, number in groups for table in read_texts(path, number)]
    assert pa.concat_tables(parts).equals(pa.concat_tables(whole))


def rewrite(folder: Path, **columns: Any) -> None:
    """The second file, with other columns. None removes one."""
    file = folder / "part-00001.parquet"
    table = pq.read_table(file)
    for name, values in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        if values is not None:
            table = table.append_column(name, values)
    pq.write_table(table, file)


def bytes_as_text(*values: bytes) -> pa.Array:
    """Strings that are not UTF-8."""
    offsets = pa.array(np.cumsum([0, *map(len, values)]), pa.int32())
    buffers = [None, offsets.buffers()[1], pa.py_buffer(b"".join(values))]
    return pa.StringArray.from_buffers(len(values), *buffers[1:])


GOOD = [b"A good text."] * 9
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file cut": (lambda folder: os.truncate(folder / "part-00001.parquet", 500), "part-00001"),
    "an empty file": (lambda folder: os.truncate(folder / "part-00001.parquet", 0), "part-00001"),
    "a file of text": (lambda folder: (folder / "notes.parquet").write_text("dear diary"), "notes.parquet"),
    "a folder with the name of a file": (lambda folder: (folder / "x.parquet").mkdir(), "x.parquet"),
    "a link to nowhere": (lambda folder: (folder / "x.parquet").symlink_to("nowhere"), "x.parquet"),
    "no files": (lambda folder: [path.unlink() for path in folder.glob("*.parquet")], "no Parquet files"),
    "a file is missing": (lambda folder: (folder / "part-00001.parquet").unlink(), "manifest.json says 30"),
    "a file twice": (
        lambda folder: shutil.copy(folder / "part-00001.parquet", folder / "copy.parquet"),
        "occurs twice",
    ),
    "no column": (lambda folder: rewrite(folder, plain=None), "part-00001.*columns .'plain'. are missing"),
    "columns of something else": (
        lambda folder: pq.write_table(pa.table({"text_id": [1], "text": ["a"]}), folder / "x.parquet"),
        "x.parquet: columns",
    ),
    "ids as text": (lambda folder: rewrite(folder, text_id=[list("abcdefghij")]), "text_id is string"),
    "ids as fractions": (lambda folder: rewrite(folder, text_id=[[0.5] * 10]), "text_id is double"),
    "ids beyond 63 bits": (
        lambda folder: rewrite(folder, text_id=[pa.array([2**64 - 1 - i for i in range(10)], pa.uint64())]),
        "part-00001",
    ),
    "texts as numbers": (lambda folder: rewrite(folder, text=[list(range(10))]), "text is int64"),
    "texts as bytes": (lambda folder: rewrite(folder, text=[[b"a"] * 10]), "text is binary"),
    "texts as lists": (lambda folder: rewrite(folder, plain=[[["a"]] * 10]), "plain is list"),
    "no id": (lambda folder: rewrite(folder, text_id=[[*range(9), None]]), "1 rows have no text_id"),
    "no text": (lambda folder: rewrite(folder, text=[["a"] * 9 + [None]]), "1 rows have no text"),
    "no plain text": (lambda folder: rewrite(folder, plain=[pa.nulls(10, pa.string())]), "10 rows have no"),
    "empty text": (
        lambda folder: rewrite(folder, text=[["a"] * 9 + [""]]),
        "the text of text_id .* is empty",
    ),
    "blank text": (lambda folder: rewrite(folder, text=[["a"] * 9 + [" \n\u3000"]]), "the text of text_id"),
    "empty plain text": (lambda folder: rewrite(folder, plain=[["a"] * 9 + [""]]), "the plain of text_id"),
    "lone surrogate": (
        lambda folder: rewrite(folder, text=[bytes_as_text(*GOOD, b"a \xed\xa0\x80 b")]),
        "part-00001",
    ),
    "half a character": (
        lambda folder: rewrite(folder, plain=[bytes_as_text(*GOOD, b"a \xe2\x82")]),
        "part-00001",
    ),
    "Latin-1": (lambda folder: rewrite(folder, text=[bytes_as_text(*GOOD, b"caf\xe9")]), "part-00001"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_c_star_is_named(tmp_path: Path, damage: str) -> None:
    folder = write(tmp_path / "augmented", [rows(20), rows(30)[20:]])
    (folder / "manifest.json").write_text('{"texts": 30}')
    config = configuration(tmp_path, data=folder)
    assert len(choose_uses(read_index(folder).plain, config).train) == 25
    act, named = DAMAGE[damage]
    act(folder)
    for read in (lambda: read_index(folder), lambda: load_examples(config, tokenizer("pieces"))):
        with pytest.raises(ConfigurationError, match=named) as caught:
            read()
        assert str(folder) in str(caught.value)
        assert str(caught.value).count("\n") < 3


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    made = rows(4)
    same = [digest(write(tmp_path / name, [made])) for name in ("a", "b")]
    assert same[0] == same[1] != digest(write(tmp_path / "c", [made[:3]]))


def test_the_digest_never_changes(tmp_path: Path) -> None:
    """Unfinished and finished runs hold it. From b2sum: of each file, then of these digests, 16 bytes."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.parquet").write_text(name)
    assert digest(tmp_path) == "f0747740a2b51eabb9be55c2b9483efe"


def test_a_c_star_without_texts_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "augmented", [[]])
    with pytest.raises(ConfigurationError, match="0 texts, 0 of them distinct, leave none to train on"):
        choose_uses(read_index(folder).plain, configuration(tmp_path, data=folder))
