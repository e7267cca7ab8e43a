"""Folders with links, loops, pipes and odd names: each file once, and what is left out is named."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tools_service.base.folders import (
    NO_TARGET,
    NOT_REGULAR,
    OTHER_TYPE,
    SECOND_LINK,
    describe,
    find_below,
)

pytestmark = pytest.mark.unit


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path.relative_to(Path.cwd())))


CASES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "dangling link": (lambda root: (root / "x.jsonl").symlink_to("nowhere"), "x.jsonl", NO_TARGET),
    "link to itself": (lambda root: (root / "x.jsonl").symlink_to("x.jsonl"), "x.jsonl", NO_TARGET),
    "long link": (lambda root: (root / "x.jsonl").symlink_to("y" * 300), "x.jsonl", NO_TARGET),
    "link through a file": (lambda root: (root / "x").symlink_to("a.jsonl/y"), "x", NO_TARGET),
    "FIFO": (lambda root: pipe(root / "x.jsonl"), "x.jsonl", NOT_REGULAR),
    "socket": (lambda root: bind(root / "x.jsonl"), "x.jsonl", NOT_REGULAR),
    "device": (lambda root: (root / "x.jsonl").symlink_to("/dev/null"), "x.jsonl", NOT_REGULAR),
    "link": (lambda root: (root / "0.jsonl").symlink_to("a.jsonl"), "0.jsonl", SECOND_LINK),
    "hard link": (lambda root: (root / "x.jsonl").hardlink_to(root / "a.jsonl"), "x.jsonl", SECOND_LINK),
    "loop": (lambda root: (root / "0").symlink_to("."), "0", SECOND_LINK),
    "loop above": (lambda root: (root / "sub" / "0").symlink_to(".."), "sub/0", SECOND_LINK),
    "link to a sibling": (lambda root: (root / "0").symlink_to("sub"), "0", SECOND_LINK),
    "absolute link": (lambda root: (root / "0").symlink_to(root.absolute()), "0", SECOND_LINK),
    "other type": (lambda root: (root / "x.csv").touch(), "x.csv", OTHER_TYPE),
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "sub" / "b.jsonl").write_text("{}")
    return tmp_path


def below(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    found = find_below(str(folder), lambda path: path.endswith(".jsonl"))
    files = [os.path.relpath(file.path, folder) for file in found.files]
    return files, [(os.path.relpath(item.path, folder), item.reason) for item in found.left_out]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", CASES)
def test_what_is_left_out_is_named_and_the_others_are_found_once(root: Path, case: str) -> None:
    make, name, reason = CASES[case]
    make(root)
    assert below(root) == (["a.jsonl", "sub/b.jsonl"], [(name, reason)])


@pytest.mark.timeout(20)
def test_two_loops_in_each_folder_do_not_hang(root: Path) -> None:
    for folder in (root, root / "sub"):
        for name in ("0", "z"):
            (folder / name).symlink_to(root)
    files, left_out = below(root)
    assert files == ["a.jsonl", "sub/b.jsonl"]
    assert {reason for _, reason in left_out} == {SECOND_LINK}


def test_a_link_to_elsewhere_is_followed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "c.jsonl").touch()
    (other / "blob").touch()
    (root / "linked").symlink_to(other)
    (root / "named.jsonl").symlink_to(other / "blob")
    assert below(root)[0] == ["a.jsonl", "linked/c.jsonl", "named.jsonl", "sub/b.jsonl"]


def test_a_link_whose_target_has_another_type_is_the_file(root: Path) -> None:
    (root / "data.bin").touch()
    (root / "c.jsonl").symlink_to("data.bin")
    assert below(root) == (["a.jsonl", "c.jsonl", "sub/b.jsonl"], [("data.bin", OTHER_TYPE)])


def test_names_that_are_no_utf8_are_found_and_shown(root: Path) -> None:
    (root / os.fsdecode(b"caf\xe9.jsonl")).touch()
    (root / os.fsdecode(b"b\n\xe9.csv")).touch()
    (root / "folder.jsonl").mkdir()
    found = find_below(str(root), lambda path: path.endswith(".jsonl"))
    assert len(found.files) == 3
    assert list(describe(found.left_out)) == ["not read: 1 x file of another type (b\\n\\udce9.csv)"]
