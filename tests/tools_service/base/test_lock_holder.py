"""Who writes to an output, by its lock files."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tools_service.base.lock_holder import lock_holder
from tools_service.base.locks import LOCK, file_lock, lock_beside, output_lock

pytestmark = pytest.mark.unit


def test_the_holder_of_a_lock_in_the_folder_or_beside_it(tmp_path: Path) -> None:
    assert lock_holder(tmp_path / "o") is None
    with output_lock(tmp_path / "o"):
        holder = lock_holder(tmp_path / "o")
    assert holder is not None
    assert (holder.pid, holder.host, holder.holds) == (os.getpid(), socket.gethostname(), True)
    assert holder.since.endswith("+00:00")
    assert lock_holder(tmp_path / "o") is None
    with file_lock(tmp_path / LOCK, tmp_path):
        inside = lock_holder(tmp_path)
        assert inside is not None
        assert inside.holds is True
    assert (tmp_path / LOCK).exists()
    assert lock_holder(tmp_path) is None


def test_a_killed_holder_is_named_and_one_that_holds_goes_first(tmp_path: Path) -> None:
    folder = tmp_path / "o"
    folder.mkdir()
    (folder / LOCK).write_text("process 7 on node-3, since 2023-01-30T00:00:00+00:00,")
    killed = lock_holder(folder)
    assert killed is not None
    assert (killed.pid, killed.host, killed.holds) == (7, "node-3", False)
    with file_lock(lock_beside(folder), folder):
        holder = lock_holder(folder)
        assert holder is not None
        assert (holder.pid, holder.holds) == (os.getpid(), True)


def test_the_lock_is_free_after_a_look(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("process 7 on node-3, since 2023-01-30T00:00:00+00:00,")
    assert lock_holder(tmp_path) is not None
    with file_lock(tmp_path / LOCK, tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "something else", "process x on y"])
def test_another_file_names_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    assert lock_holder(tmp_path) is None
