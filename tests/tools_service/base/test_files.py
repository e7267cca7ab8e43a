"""Files and folders are complete or not there at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from tools_service.base.files import apply_umask, atomic_write, atomic_write_json, read_json, size_of_file

pytestmark = pytest.mark.unit


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_nothing_else_remains(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", "old")
    atomic_write(tmp_path / "a", "neu: é")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "neu: é"
    atomic_write_json(tmp_path / "b", {"x": ["é"]})
    assert json.loads((tmp_path / "b").read_text(encoding="utf-8")) == {"x": ["é"]}
    assert names(tmp_path) == ["a", "b"]


def test_a_private_temporary_file_that_was_renamed_gets_the_mode_of_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    descriptor, name = tempfile.mkstemp(dir=tmp_path)
    os.close(descriptor)
    Path(name).rename(tmp_path / "model.safetensors")
    (tmp_path / "program").touch(mode=0o700)
    for umask, mode in ((0o022, 0o644), (0o027, 0o640), (0o077, 0o600)):
        (tmp_path / "model.safetensors").chmod(0o600)
        before = os.umask(umask)
        try:
            apply_umask(tmp_path)
        finally:
            os.umask(before)
        assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == mode
    assert (tmp_path / "program").stat().st_mode & 0o777 == 0o700
    assert names(tmp_path) == ["model.safetensors", "new", "program"]


def test_a_file_that_appears_while_it_is_read_is_missing_and_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, stat = tmp_path / "a.json", Path.stat

    def written_behind(self: Path, **options: bool) -> os.stat_result:
        try:
            return stat(self, **options)
        finally:
            path.write_text("1")  # by another process, right after this one has looked

    monkeypatch.setattr(Path, "stat", written_behind)
    with pytest.raises(FileNotFoundError):
        read_json(path)
    assert read_json(path) == 1


def test_only_a_regular_file_has_a_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    os.mkfifo(tmp_path / "pipe")
    assert size_of_file(tmp_path / "a") == 3
    for name in ("pipe", "."):
        with pytest.raises(ValueError, match="not a file"):
            size_of_file(tmp_path / name)
