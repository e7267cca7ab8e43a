"""Row files: every text once after any crash; files of earlier versions are read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.records import ANNOTATION_SCHEMA, Annotation, Call, Cost, Document, PhaseWork, Text
from pipeline.storage.row_files import (
    ROWS,
    RowFileError,
    count_in_footers,
    parquet_files,
    read_batches,
    read_failed,
    read_rows,
    recover_rows,
    remove_failed,
    write_rows,
)

pytestmark = pytest.mark.unit


def write(path: Path, ids: list[int]) -> None:
    pq.write_table(pa.table({"text_id": pa.array(ids, pa.int64()), "text": [f"text {i}" for i in ids]}), path)


def own(letter: str) -> str:
    """A name as annotate gives it."""
    return f"{letter * 24}.parquet"


def all_ids(folder: Path) -> list[int]:
    return sorted(i for path in parquet_files(folder) for i in pq.read_table(path)["text_id"].to_pylist())


def test_a_sound_folder_is_left_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / own("a"), [5, 1])
    write(tmp_path / own("b"), [2**62, 0])
    before = {path: path.read_bytes() for path in parquet_files(tmp_path)}
    assert recover_rows(tmp_path).tolist() == [0, 1, 5, 2**62]
    assert {path: path.read_bytes() for path in parquet_files(tmp_path)} == before


def test_an_empty_folder_has_no_ids(tmp_path: Path) -> None:
    assert recover_rows(tmp_path).tolist() == []


@pytest.mark.parametrize("cut", [0, 1, 4, 0.5, -1])
def test_a_file_that_was_not_finished_goes(tmp_path: Path, cut: float) -> None:
    """Killed at any byte of a write: what is there is not a Parquet file yet."""
    write(tmp_path / own("a"), [1, 2])
    write(tmp_path / own("b"), [3, 4])
    whole = (tmp_path / own("b")).read_bytes()
    size = int(len(whole) * cut) if isinstance(cut, float) else cut if cut >= 0 else len(whole) + cut
    (tmp_path / own("b")).write_bytes(whole[:size])
    assert recover_rows(tmp_path).tolist() == [1, 2]
    assert all_ids(tmp_path) == [1, 2]


def test_rows_that_stand_twice_stay_once(tmp_path: Path) -> None:
    write(tmp_path / own("a"), [1, 2, 3])
    write(tmp_path / own("b"), [3, 4, 1])
    write(tmp_path / own("c"), [4, 2])
    (tmp_path / f"{own('d')}.part").write_bytes(b"")
    assert recover_rows(tmp_path).tolist() == [1, 2, 3, 4]
    assert all_ids(tmp_path) == [1, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == [own("a"), own("b")]
    assert pq.read_table(tmp_path / own("b")).to_pylist() == [{"text_id": 4, "text": "text 4"}]


def test_rows_to_be_done_again_are_removed_and_no_others(tmp_path: Path) -> None:
    failed_ids = {1, 3, 4, 5}
    for number in range(3):
        ids = [3 * number, 3 * number + 1, 3 * number + 2]
        status = ["failed" if text_id in failed_ids else "annotated" for text_id in ids]
        table = pa.table({"text_id": pa.array(ids, pa.int64()), "status": status})
        pq.write_table(table, tmp_path / own(str(number)))
    untouched = (tmp_path / own("2")).stat().st_mtime_ns
    assert remove_failed(tmp_path) == 4
    assert remove_failed(tmp_path) == 0
    assert [path.name for path in parquet_files(tmp_path)] == [own("0"), own("2")]
    assert recover_rows(tmp_path).tolist() == [0, 2, 6, 7, 8]
    assert (tmp_path / own("2")).stat().st_mtime_ns == untouched


def test_a_batch_is_a_file_of_its_own_and_the_same_one_the_second_time(tmp_path: Path) -> None:
    rows = pa.table({"text_id": pa.array([7, 3], pa.int64()), "text": ["a", "b"]})
    other = rows.slice(1)
    for batch in (rows, other, rows):
        write_rows(tmp_path, batch)
    assert len(parquet_files(tmp_path)) == len(list(tmp_path.iterdir())) == 2
    assert all_ids(tmp_path) == [3, 3, 7]
    assert recover_rows(tmp_path).tolist() == [3, 7]


def test_a_full_disk_leaves_nothing_of_a_batch(tmp_path: Path) -> None:
    """By a limit on the size of files, which fails in the middle of a write as a full disk does."""
    code = (
        "import resource, signal, sys; from pathlib import Path; import pyarrow as pa\n"
        "from pipeline.storage.row_files import write_rows\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "rows = pa.table({'text_id': list(range(9999)), 'text': [str(n) for n in range(9999)]})\n"
        "try: write_rows(Path(sys.argv[1]), rows)\n"
        "except OSError as error: print(error.strerror)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "File too large"
    assert list(tmp_path.iterdir()) == []


def write_annotations(folder: Path, annotations: list[Annotation], name: str = "0.parquet") -> None:
    (folder / ROWS).mkdir(exist_ok=True)
    pq.write_table(
        pa.Table.from_pylist([one.to_row() for one in annotations], schema=ANNOTATION_SCHEMA),
        folder / ROWS / name,
    )


def text(number: int) -> Text:
    return Text(number, Document(f"a.jsonl#{number}"), "some text")


def test_rows_are_read_a_file_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is open at once would grow with the corpus: there are 16,000 files to a million texts."""
    opened: list[Any] = []

    class Watched(pq.ParquetFile):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            opened.append(self)

    for number in range(3):
        write_annotations(tmp_path, [Annotation(text(number), "no_calls")], f"{number}.parquet")
    monkeypatch.setattr(pq, "ParquetFile", Watched)
    for number, batch in enumerate(read_batches(tmp_path, ["status", "text_id"])):
        assert batch.to_pylist() == [{"status": "no_calls", "text_id": number}]
        assert [file.closed for file in opened] == [True] * number + [False]
    assert len(opened) == 3


def test_a_column_that_a_file_lacks_is_an_error(tmp_path: Path) -> None:
    write_annotations(tmp_path, [Annotation(text(1), "no_calls")])
    with pytest.raises(RowFileError, match=r"0\.parquet: cannot be read as rows: .*colour"):
        list(read_batches(tmp_path, ["text_id", "colour"]))


OLD_COST = pa.struct([(name, pa.int64()) for name in ("tokens", "padding", "seen", "logits")])
OLD_WORK = pa.struct([("tool", pa.string()), ("phase", pa.string()), ("least", OLD_COST), ("run", OLD_COST)])


def test_calls_of_an_earlier_version_have_no_probability_of_the_name(tmp_path: Path) -> None:
    """Rows written before `p_name`, beside rows with it."""
    call = Call("Calculator", 1, 0.5, "1 + 2", "3", 1.0, 2.0, None, 1.0)
    old, new = (
        Annotation(text(1), "annotated", calls=(call,)),
        Annotation(text(2), "annotated", calls=(replace(call, p_name=0.25),)),
    )
    index = ANNOTATION_SCHEMA.get_field_index("calls")
    fields = [field for field in ANNOTATION_SCHEMA.field("calls").type.value_type if field.name != "p_name"]
    old_schema = ANNOTATION_SCHEMA.set(index, pa.field("calls", pa.list_(pa.struct(fields))))
    (tmp_path / ROWS).mkdir()
    pq.write_table(pa.Table.from_pylist([old.to_row()], schema=old_schema), tmp_path / ROWS / own("a"))
    write_annotations(tmp_path, [new], own("b"))
    assert recover_rows(tmp_path / ROWS).tolist() == [1, 2]
    rows = read_rows(tmp_path, ANNOTATION_SCHEMA.names)
    assert [Annotation.from_row(row) for row in rows] == [old, new]


def test_rows_of_an_earlier_version_have_the_current_names(tmp_path: Path) -> None:
    """Earlier rows say least and seen; a resumed run has files of both kinds, and incomplete ones."""
    old_work = {
        "tool": None,
        "phase": "empty",
        "least": {"tokens": 4, "padding": 0, "seen": 10, "logits": 5},
        "run": {"tokens": 4, "padding": 1, "seen": 15, "logits": 5},
    }
    work = (PhaseWork(None, "empty", Cost(4, 0, 10, 5), Cost(4, 1, 15, 5)),)
    first, second = (Annotation(text(number), "no_calls", work=work) for number in (1, 2))
    failed = Annotation(text(3), "failed", "ValueError: no")
    index = ANNOTATION_SCHEMA.get_field_index("work")
    old_schema = ANNOTATION_SCHEMA.set(index, pa.field("work", pa.list_(OLD_WORK)))
    old_rows = [first.to_row() | {"work": [old_work]}, failed.to_row(), second.to_row() | {"work": []}]
    (tmp_path / ROWS).mkdir()
    pq.write_table(pa.Table.from_pylist(old_rows, schema=old_schema), tmp_path / ROWS / own("a"))
    write_annotations(tmp_path, [second], own("b"))
    expected = [first, failed, Annotation(text(2), "no_calls"), second]
    assert [Annotation.from_row(row) for row in read_rows(tmp_path, ANNOTATION_SCHEMA.names)] == expected
    assert all(
        batch.schema.field("work").type == ANNOTATION_SCHEMA.field("work").type
        for batch in read_batches(tmp_path, ["work"])
    )
    assert recover_rows(tmp_path / ROWS).tolist() == [1, 2, 3]
    assert list(read_failed(tmp_path)) == [(3, "ValueError: no")]
    assert remove_failed(tmp_path / ROWS) == 1
    remaining = [Annotation.from_row(row) for row in read_rows(tmp_path, ANNOTATION_SCHEMA.names)]
    assert remaining == [first, Annotation(text(2), "no_calls")]


def whole_rows(folder: Path) -> bytes:
    """A row file of annotate with two texts, at `folder`/rows/1….parquet; returns its content."""
    write_annotations(folder, [Annotation(text(n), "no_calls") for n in (1, 2)], own("1"))
    return (folder / ROWS / own("1")).read_bytes()


DAMAGED = {
    "nothing": lambda whole: b"",
    "one byte": lambda whole: whole[:1],
    "only the magic": lambda whole: whole[:4],
    "half": lambda whole: whole[: len(whole) // 2],
    "no last byte": lambda whole: whole[:-1],
    "no magic at the end": lambda whole: whole[:-4] + b"XXXX",
    "a footer of another length": lambda whole: whole[:-8] + b"\xff\xff\xff\x7f" + whole[-4:],
    "text": lambda whole: b"years of work",
    "JSON": lambda whole: b"[]",
    "zeros": lambda whole: b"\0" * len(whole),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize(
    "name", ["thesis.parquet", "a.parquet", f"{'1' * 23}.parquet", f"{'g' * 24}.parquet"]
)
def test_a_damaged_file_that_annotate_did_not_name_is_kept_and_named(
    tmp_path: Path, damage: str, name: str
) -> None:
    whole = whole_rows(tmp_path)
    foreign = tmp_path / ROWS / name
    foreign.write_bytes(DAMAGED[damage](whole))
    before = foreign.read_bytes()
    with pytest.raises(RowFileError, match=f"{name}: annotate did not write this file") as refused:
        recover_rows(tmp_path / ROWS)
    assert foreign.read_bytes() == before
    assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(RowFileError, match=name):
        list(read_batches(tmp_path, ["text_id"]))


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_of_annotate_is_named_by_readers_and_done_again_by_annotate(
    tmp_path: Path, damage: str
) -> None:
    whole = whole_rows(tmp_path)
    damaged = tmp_path / ROWS / own("2")
    damaged.write_bytes(DAMAGED[damage](whole))
    for read in (count_in_footers, lambda folder: list(read_batches(folder, ["text_id"]))):
        with pytest.raises(RowFileError, match=own("2")):
            read(tmp_path)
    assert recover_rows(tmp_path / ROWS).tolist() == [1, 2]
    assert not damaged.exists()


def test_any_flipped_byte_is_an_error_that_names_the_file_or_other_values(tmp_path: Path) -> None:
    """Parquet has no checksums: some damage gives other values. None gives another error."""
    whole = whole_rows(tmp_path)
    path = tmp_path / ROWS / own("1")
    messages = []
    for at in range(0, len(whole), max(1, len(whole) // 400)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            list(read_rows(tmp_path, ANNOTATION_SCHEMA.names))
        except RowFileError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(own("1") in message and len(message) < 700 for message in messages)


@pytest.mark.parametrize(
    "columns",
    [
        {"text_id": ["1"]},
        {"text_id": [None]},
        {"text_id": [1.5]},
        {"text": [1]},
        {"text": [None]},
        {"text": [b"\xff"]},
        {"status": [None]},
        {"calls": ["none"]},
        {"calls": [None]},
        {"calls": [[{"tool": "QA"}]]},
        {"funnel": [3]},
        {"work": [3]},
    ],
)
def test_a_column_of_another_type_is_named(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    whole_rows(tmp_path)
    table = pa.Table.from_pylist([Annotation(text(3), "no_calls").to_row()], schema=ANNOTATION_SCHEMA)
    for name, values in columns.items():
        index = ANNOTATION_SCHEMA.get_field_index(name)
        table = table.set_column(index, name, pa.array(values))
    pq.write_table(table, tmp_path / ROWS / own("2"))
    with pytest.raises(RowFileError, match=own("2")):
        list(read_rows(tmp_path, ANNOTATION_SCHEMA.names))


def test_duplicates_and_failed_rows_in_a_file_of_another_name_are_refused(tmp_path: Path) -> None:
    whole_rows(tmp_path)
    copy = tmp_path / ROWS / "copy.parquet"
    write_annotations(tmp_path, [Annotation(text(2), "failed", "no")], "copy.parquet")
    before = copy.read_bytes()
    for change in (recover_rows, remove_failed):
        with pytest.raises(RowFileError, match=r"copy\.parquet: annotate did not write this file"):
            change(tmp_path / ROWS)
    assert copy.read_bytes() == before


@pytest.mark.parametrize(
    "name", ["mine.part", f"{own('1')}.bak.part", "a.parquet.part", f"{own('1')}.xyz.part"]
)
def test_a_part_of_another_name_stays(tmp_path: Path, name: str) -> None:
    whole_rows(tmp_path)
    (tmp_path / ROWS / name).write_bytes(b"years of work")
    (tmp_path / ROWS / f"{own('2')}.{'0' * 32}.part").write_bytes(b"PAR1")
    recover_rows(tmp_path / ROWS)
    assert sorted(path.name for path in (tmp_path / ROWS).iterdir()) == sorted([own("1"), name])


def test_a_folder_in_the_place_of_a_row_file_is_kept_and_named(tmp_path: Path) -> None:
    whole_rows(tmp_path)
    (tmp_path / ROWS / own("2")).mkdir()
    with pytest.raises(RowFileError, match=own("2")):
        recover_rows(tmp_path / ROWS)
    assert (tmp_path / ROWS / own("2")).is_dir()
