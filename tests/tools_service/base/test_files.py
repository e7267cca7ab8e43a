"""Files and folders are complete or not there at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools_service.base.files import atomic_write, atomic_write_json

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
