"""Only what this project made is removed or replaced; a folder is complete or not there at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools_service.base.files import OutputError
from tools_service.base.ownership import OutputKind, replacing_folder

pytestmark = pytest.mark.unit

THING = OutputKind(
    name="a thing", marks={"a": frozenset({"thing"})}, paths=("a", "b", "rows/", r"rows/\d+\.x")
)
OLD = '{"thing": 1}'


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "index"
    with replacing_folder(folder, THING) as staging:
        (staging / "a").write_text("new")
        assert not folder.exists()
    assert (folder / "a").read_text() == "new"
    assert names(folder.parent) == ["index"]


def test_an_old_folder_is_replaced_and_its_open_files_stay_readable(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "a").write_text(OLD)
    (folder / "b").write_text("old")
    with (folder / "a").open() as opened:
        with replacing_folder(folder, THING) as staging:
            (staging / "a").write_text("new")
            assert (folder / "a").read_text() == OLD
        assert opened.read() == OLD
    assert (names(folder), (folder / "a").read_text()) == (["a"], "new")
    assert names(tmp_path) == ["index"]


def test_a_block_that_raises_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "a").write_text(OLD)
    with pytest.raises(FileNotFoundError), replacing_folder(folder, THING) as staging:
        (staging / "nowhere" / "a").write_text("half")
    assert (folder / "a").read_text() == OLD
    assert names(tmp_path) == ["index"]


def test_an_exchange_that_fails_puts_the_old_folder_back(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "a").write_text(OLD)
    with (
        pytest.raises(OutputError, match=f"{folder}: cannot write"),
        replacing_folder(folder, THING) as staging,
    ):
        staging.rmdir()  # as if the disk had lost it
    assert (folder / "a").read_text() == OLD
    assert names(tmp_path) == ["index"]


def test_a_link_keeps_its_place_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "index").mkdir()
    (tmp_path / "index").symlink_to(tmp_path / "disk" / "index")
    with replacing_folder(tmp_path / "index", THING) as staging:
        (staging / "a").write_text("new")
    assert (tmp_path / "disk" / "index" / "a").read_text() == "new"
    assert (tmp_path / "index").is_symlink()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    refused = pytest.raises(OutputError, match=f"{tmp_path}/file/index: cannot write")
    with refused, replacing_folder(tmp_path / "file" / "index", THING):
        pass
