"""One writing process at a time, for files and for folders that are replaced; nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.storage.lock import exclusive_lock
from tools_service.base.files import OutputError
from tools_service.base.locks import OutputInUseError, UnusableOutputError, lock_beside, output_lock

pytestmark = pytest.mark.unit

HOLD = "import sys, time; from pathlib import Path; from tools_service.base.locks import output_lock\n" + (
    "with output_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
)


def test_the_lock_file_is_beside_and_goes_with_the_lock(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "index"
    with output_lock(output):
        assert [path.name for path in output.parent.iterdir()] == [".index.lock"]
        with (
            pytest.raises(OutputInUseError, match=f"{output}: process {os.getpid()} on"),
            output_lock(output),
        ):
            pass
        with output_lock(output.with_name("other")):
            pass
    assert list(output.parent.iterdir()) == []


def test_a_killed_holder_is_no_obstacle(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "a")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(OutputInUseError, match=f"process {holder.pid}"), output_lock(tmp_path / "a"):
            pass
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
    assert lock_beside(tmp_path / "a").exists()
    with output_lock(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_who_waits_comes_next_and_one_at_a_time(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(20):
            with output_lock(tmp_path / "a", wait=True):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_either_replaced_or_written_in_place(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / "a"), pytest.raises(OutputInUseError), output_lock(tmp_path / "a"):
        pass
    with output_lock(tmp_path / "a"), pytest.raises(OutputInUseError), exclusive_lock(tmp_path / "a"):
        pass
    with output_lock(tmp_path / "b"), pytest.raises(OutputInUseError), exclusive_lock(tmp_path / "b"):
        pass
    with exclusive_lock(tmp_path / "a"):
        pass


def test_a_link_and_its_target_have_one_lock(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with output_lock(tmp_path / "link"), pytest.raises(OutputInUseError), output_lock(tmp_path / "a"):
        pass


def test_a_place_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("years of work")
    for output in (tmp_path / "file" / "a", tmp_path / ("x" * 300)):
        with pytest.raises(UnusableOutputError, match="cannot write") as refused, output_lock(output):
            pass
        assert isinstance(refused.value, OutputError)
        assert "\n" not in str(refused.value)
    with pytest.raises(UnusableOutputError, match="cannot write"), exclusive_lock(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "years of work"


@pytest.mark.parametrize("content", [b"years of work", b"\0", b"process", b"process 3 on a, since b,\nmore"])
def test_a_file_of_the_user_with_the_name_of_a_lock_is_kept(tmp_path: Path, content: bytes) -> None:
    for path, lock in ((tmp_path / ".a.lock", output_lock), (tmp_path / "a" / ".lock", exclusive_lock)):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        with pytest.raises(UnusableOutputError, match=r"\.lock: not a lock file"), lock(tmp_path / "a"):
            pass
        assert path.read_bytes() == content
        path.unlink()
