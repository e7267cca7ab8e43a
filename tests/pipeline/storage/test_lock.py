"""One writer per folder; a small file is replaced whole."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.storage.lock import OutputInUseError, exclusive_lock
from tools_service.base.files import OutputError, atomic_write

pytestmark = pytest.mark.unit


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
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    with no_room(), pytest.raises(OutputError, match=f"{tmp_path}: cannot write"), exclusive_lock(tmp_path):
        pass
    with exclusive_lock(tmp_path):  # nobody has it
        pass


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
