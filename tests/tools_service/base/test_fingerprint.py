"""Fingerprints: equal for equal inputs, different for different ones."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from tools_service.base.fingerprint import FileState, fingerprint, folder_states

pytestmark = pytest.mark.unit


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "articles.jsonl"
    path.write_text("content")
    return path


def test_the_state_of_a_file(file: Path) -> None:
    os.utime(file, ns=(1, 5))
    assert FileState.of(file) == FileState("articles.jsonl", 7, 5)
    digest = hashlib.sha256(b"content").hexdigest()
    state = FileState.of(file, name="source", contents=True)
    assert state == FileState("source", 7, 5, digest)
    assert FileState(**asdict(state)) == state


def test_a_file_matches_by_time_or_by_content(file: Path) -> None:
    known = FileState.of(file, contents=True)
    without_content = FileState.of(file)
    assert known.matches(file)
    assert without_content.matches(file)
    os.utime(file, (1, 1))  # the same content, checked out again
    assert known.matches(file)
    assert not without_content.matches(file)
    file.write_text("CONTENT")
    assert not known.matches(file)
    file.write_text("longer content")
    os.utime(file, ns=(known.mtime_ns, known.mtime_ns))
    assert not known.matches(file)


def test_another_name_does_not_match(file: Path) -> None:
    known = FileState.of(file, contents=True)
    assert not known.matches(file.rename(file.with_name("other.jsonl")))


def test_the_states_of_a_folder_are_those_of_its_files(file: Path) -> None:
    (file.parent / "subfolder").mkdir()
    (file.parent / "a").touch()
    assert [state.name for state in folder_states(file.parent)] == ["a", "articles.jsonl"]
    assert folder_states(file.parent / "nowhere") == []


def test_a_fingerprint_tells_values_apart_and_not_the_order_of_keys(file: Path) -> None:
    state = FileState.of(file)
    assert fingerprint([{"a": 1, "b": [None, 2.5]}]) == fingerprint([{"b": [None, 2.5], "a": 1}])
    different = [[], [1], ["1"], [1, 2], [2, 1], [[1, 2]], [file], [state], ["\ud800"]]
    assert len({fingerprint(parts) for parts in different}) == len(different)
    assert len(fingerprint(different)) == 32


def test_a_value_that_json_cannot_hold_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown type"):
        fingerprint([object()])
