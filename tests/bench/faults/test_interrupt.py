"""A merge that is killed before any one of its changes leaves nothing, and its repetition is the same."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bench.faults.disk import PAGE_BYTES, can_mount, small_disk
from bench.faults.interrupt import Interruption
from bench.faults.outcome import leftovers
from bench.fixtures import small_run
from pipeline.augmentation.merge import merge
from pipeline.base.config import MergeConfig
from pipeline.storage.row_files import ROWS
from tools_service.base.files import OutputError

pytestmark = pytest.mark.unit

READ, WRITE = os.O_RDONLY, os.O_WRONLY | os.O_CREAT


@pytest.mark.parametrize(
    ("event", "arguments", "is_change"),
    [
        ("open", ("{}/a", "w", WRITE), True),
        ("open", ("{}/a", None, os.O_RDWR), True),
        ("open", (b"{}/a", "w", WRITE), True),
        ("open", (Path("{}/a"), "w", WRITE), True),
        ("open", ("{}/a", "r", READ), False),
        ("open", (7, "w", WRITE), False),
        ("open", ("/elsewhere/a", "w", WRITE), False),
        ("open", ("{}/../a", "w", WRITE), False),
        ("os.mkdir", ("{}/a", 511, -1), True),
        ("os.mkdir", ("/elsewhere", 511, -1), False),
        ("os.rename", ("{}/a", "{}/b", -1, -1), True),
        ("os.remove", ("{}/a", -1), True),
        ("os.rmdir", ("{}/a", -1), True),
        ("os.rmdir", ("a", -1), False),
        ("os.truncate", ("{}/a", 3), True),
        ("os.truncate", (7, 3), False),
        ("os.link", ("{}/a", "{}/b", -1, -1), True),
        ("os.symlink", ("{}/a", "{}/b", -1), True),
        ("os.listdir", ("{}",), False),
        ("os.scandir", ("{}",), False),
        ("socket.connect", ("{}", 1), False),
    ],
)
def test_changes_of_the_folder_are_counted(
    tmp_path: Path, event: str, arguments: tuple[Any, ...], is_change: bool
) -> None:
    def placed(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.replace(b"{}", bytes(tmp_path))
        return type(value)(str(value).format(tmp_path)) if isinstance(value, str | Path) else value

    hook = Interruption(str(tmp_path), 0, signal.SIGKILL, 0.0)
    hook(event, tuple(map(placed, arguments)))
    assert hook.changes == is_change


def in_a_process(work: Callable[[], int]) -> int:
    """Fork, so that a signal and an audit hook end with the process. Returns the wait status."""
    pid = os.fork()
    if not pid:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def annotated(folder: Path) -> None:
    """Write a finished annotation to folder/annotated."""
    small_run.save_model(folder / "model")
    small_run.write_prompts(folder / "prompts")
    small_run.write_corpus(folder / "pages", 1, 30)
    small_run.finished(folder, folder / "annotated")


def test_a_merge_killed_before_any_change_leaves_nothing(tmp_path: Path) -> None:
    annotated(tmp_path)

    def config(name: str, max_examples: int = 100) -> MergeConfig:
        output = tmp_path / name / "out"
        output.parent.mkdir(exist_ok=True)
        return MergeConfig(annotations=(tmp_path / "annotated",), output=output, max_examples=max_examples)

    def killed(name: str, number: int) -> int:
        hook = Interruption(str(tmp_path / name), number, signal.SIGKILL, 0.0)
        sys.addaudithook(hook)
        merge(config(name))
        return hook.changes

    merge(config("other", 2))
    merge(config("undisturbed"))
    rows = {name: pq.read_table(tmp_path / name / "out" / ROWS) for name in ("other", "undisturbed")}
    assert rows["other"].num_rows < rows["undisturbed"].num_rows
    merge(config("counted", 2))
    changes = os.waitstatus_to_exitcode(in_a_process(lambda: killed("counted", 0)))
    assert 5 < changes < 99
    for number in range(1, changes + 1):
        name = f"killed {number}"
        merge(config(name, 2))
        status = in_a_process(lambda name=name, number=number: killed(name, number))
        assert os.WTERMSIG(status) == signal.SIGKILL, number
        beside = (tmp_path / name).glob(".out.*.old")  # between two renames; the next merge puts it back
        found = [each / ROWS for each in (tmp_path / name / "out", *beside) if (each / ROWS).exists()]
        assert any(pq.read_table(each) in list(rows.values()) for each in found), number
        merge(config(name))
        assert pq.read_table(tmp_path / name / "out" / ROWS) == rows["undisturbed"]
        assert not leftovers(tmp_path / name, tmp_path / "undisturbed"), number


@pytest.mark.parametrize("pages", [1, 2])
def test_a_merge_without_space_is_one_sentence(tmp_path: Path, pages: int) -> None:
    if not can_mount():
        pytest.skip("no right to mount a file system that can be full")
    (tmp_path / "disk").mkdir()
    annotated(tmp_path)
    config = MergeConfig(annotations=(tmp_path / "annotated",), output=tmp_path / "disk" / "out")
    with small_disk(tmp_path / "disk", pages * PAGE_BYTES) as disk:
        with pytest.raises(OutputError, match=r"^[^\n]*cannot write: [^\n]*No space left[^\n]*$"):
            merge(config)
        assert not list(disk.folder.glob(".out.*")), "leftovers"
        disk.enlarge()
        assert merge(config).texts == pq.read_table(config.output / ROWS).num_rows
