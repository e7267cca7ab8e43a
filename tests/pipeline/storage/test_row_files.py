"""Output folders: one writer, rows once whatever happened, small files whole."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.lock import OutputInUseError, exclusive_lock
from pipeline.storage.row_files import parquet_files, recover_rows, remove_rows, write_rows
from tools_service.base.files import OutputError, atomic_write

pytestmark = pytest.mark.unit


def write(path: Path, ids: list[int]) -> None:
    pq.write_table(pa.table({"text_id": pa.array(ids, pa.int64()), "text": [f"text {i}" for i in ids]}), path)


def all_ids(folder: Path) -> list[int]:
    return sorted(i for path in parquet_files(folder) for i in pq.read_table(path)["text_id"].to_pylist())


@contextmanager
def no_room() -> Iterator[None]:
    """No file can grow, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_error_that_names_what_could_not_be_written(tmp_path: Path) -> None:
    atomic_write(tmp_path / "manifest.json", "old")
    with no_room(), pytest.raises(OutputError, match=rf"{tmp_path}/manifest\.json: cannot write: .*Errno"):
        atomic_write(tmp_path / "manifest.json", "new")
    assert (tmp_path / "manifest.json").read_text() == "old"
    with no_room(), pytest.raises(OutputError, match=f"{tmp_path}: cannot write"), exclusive_lock(tmp_path):
        pass
    with exclusive_lock(tmp_path):  # nobody has it
        pass


def test_a_sound_folder_is_left_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [5, 1])
    write(tmp_path / "b.parquet", [2**62, 0])
    before = {path: path.read_bytes() for path in parquet_files(tmp_path)}
    assert recover_rows(tmp_path).tolist() == [0, 1, 5, 2**62]
    assert {path: path.read_bytes() for path in parquet_files(tmp_path)} == before


def test_an_empty_folder_has_no_ids(tmp_path: Path) -> None:
    assert recover_rows(tmp_path).tolist() == []


@pytest.mark.parametrize("cut", [0, 1, 4, 0.5, -1])
def test_a_file_that_was_not_finished_goes(tmp_path: Path, cut: float) -> None:
    """Killed at any byte of a write: what is there is not a Parquet file yet."""
    write(tmp_path / "a.parquet", [1, 2])
    write(tmp_path / "b.parquet", [3, 4])
    whole = (tmp_path / "b.parquet").read_bytes()
    size = int(len(whole) * cut) if isinstance(cut, float) else cut if cut >= 0 else len(whole) + cut
    (tmp_path / "b.parquet").write_bytes(whole[:size])
    assert recover_rows(tmp_path).tolist() == [1, 2]
    assert all_ids(tmp_path) == [1, 2]


def test_rows_that_stand_twice_stay_once(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [1, 2, 3])
    write(tmp_path / "b.parquet", [3, 4, 1])
    write(tmp_path / "c.parquet", [4, 2])
    (tmp_path / "d.parquet.part").write_bytes(b"")
    assert recover_rows(tmp_path).tolist() == [1, 2, 3, 4]
    assert all_ids(tmp_path) == [1, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]
    assert pq.read_table(tmp_path / "b.parquet").to_pylist() == [{"text_id": 4, "text": "text 4"}]


HOLD = "import sys, time; from pathlib import Path; from pipeline.storage.lock import exclusive_lock\n" + (
    "with exclusive_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
)


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    """However it went: the first is killed here."""
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None
        first.stdout.readline()
        with (
            pytest.raises(OutputInUseError, match=rf"{tmp_path}: process {first.pid} on .* is writing here"),
            exclusive_lock(tmp_path),
        ):
            pass
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    with exclusive_lock(tmp_path), pytest.raises(OutputInUseError), exclusive_lock(tmp_path):
        pass
    with exclusive_lock(tmp_path):
        pass


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a.json", "first")
    atomic_write(tmp_path / "a.json", "zweiter é")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "zweiter é"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_rows_to_be_done_again_are_removed_and_no_others(tmp_path: Path) -> None:
    for number in range(3):
        table = pa.table({"text_id": pa.array([3 * number, 3 * number + 1, 3 * number + 2], pa.int64())})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    untouched = (tmp_path / "2.parquet").stat().st_mtime_ns
    assert remove_rows(tmp_path, []) == 0
    assert remove_rows(tmp_path, [1, 3, 4, 5, 77]) == 4
    assert [path.name for path in parquet_files(tmp_path)] == ["0.parquet", "2.parquet"]
    assert recover_rows(tmp_path).tolist() == [0, 2, 6, 7, 8]
    assert (tmp_path / "2.parquet").stat().st_mtime_ns == untouched


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
