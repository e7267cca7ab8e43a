"""Only what this project made is removed or replaced; a folder is complete or not there at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools_service.base.errors import ConfigurationError
from tools_service.base.files import OutputError
from tools_service.base.ownership import NotOwnError, OutputKind, remove_own, replacing_folder, require_own

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


def thing(folder: Path, *others: str) -> Path:
    """An output of the kind, with `others`: paths, folders with / at the end, links with @."""
    folder.mkdir(parents=True)
    (folder / "a").write_text(OLD)
    (folder / "rows").mkdir()
    (folder / "rows" / "1.x").write_text("row")
    for other in others:
        path = folder / other.rstrip("/@")
        path.parent.mkdir(parents=True, exist_ok=True)
        if other.endswith("/"):
            path.mkdir()
        elif other.endswith("@"):
            path.symlink_to(folder / "rows")
        else:
            path.write_text("years of work")
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


FOREIGN = [
    "thesis.txt", "A", "a.txt", "ab", "b/thesis.txt", "rows/1.y", "rows/x.x", "rows/1.x.bak", "rows/1.xx",
    "rows/.1.x", "rows/sub/", "rows/sub/1.x", "notes/", "notes/1.x", ".git/config", "rows.bak/", " a", "a\nb",
    "b@", "link@", "rows/2.x@", ".locks", "manifest.json", "rows/１.txt", "~a",
]  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_user_put_into_an_output_is_named_and_kept(tmp_path: Path, name: str) -> None:
    folder = thing(tmp_path / "out", name)
    before = everything(tmp_path)
    shown = name.removesuffix("/").removesuffix("@").split("/")[0]
    with pytest.raises(NotOwnError) as refused:
        remove_own(folder, THING)
    assert shown in str(refused.value)
    with pytest.raises(NotOwnError), replacing_folder(folder, THING):
        pytest.fail("the block must not run")
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "mark",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"thing"',
        "{}",
        '{"other": 1}',
        '{"thing": NaN}',
        "[" * 100_000,
        "\xff",
        " ",
    ],
)
def test_a_folder_without_the_mark_of_its_kind_is_kept(tmp_path: Path, mark: str) -> None:
    folder = thing(tmp_path / "out")
    (folder / "a").write_text(mark, encoding="latin-1")
    before = everything(tmp_path)
    for attempt in (remove_own, require_own):
        with pytest.raises(NotOwnError, match="not empty and not a thing, its a is missing, damaged"):
            attempt(folder, THING)
    assert everything(tmp_path) == before


def test_our_own_is_removed_whole_or_but_for_its_lock(tmp_path: Path) -> None:
    folder = thing(tmp_path / "out", ".lock")
    remove_own(folder, THING, keep_folder=True)
    assert names(folder) == [".lock"]
    remove_own(folder, THING)
    remove_own(folder, THING)  # nothing there
    assert names(tmp_path) == []


def test_what_appears_during_the_block_is_kept(tmp_path: Path) -> None:
    folder = thing(tmp_path / "out")
    refused = pytest.raises(NotOwnError, match=r"thesis\.txt")
    with refused, replacing_folder(folder, THING) as staging:
        (staging / "a").write_text("new")
        (folder / "thesis.txt").write_text("years of work")
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert names(tmp_path) == ["out"]


def test_leftovers_of_killed_runs_go_and_those_of_others_stay(tmp_path: Path) -> None:
    thing(tmp_path / ".out.0123abcd.part")
    thing(tmp_path / ".out.0123abcd.old")
    others = [
        thing(tmp_path / ".other.0123abcd.part"),  # of another output
        thing(tmp_path / ".out.mine.part"),  # no name of ours
        thing(tmp_path / ".out.89abcdef.part", "thesis.txt"),
        tmp_path / ".out.00000000.part",
    ]
    others[-1].write_text("a file")
    with replacing_folder(thing(tmp_path / "out"), THING) as staging:
        (staging / "a").write_text("new")
    assert names(tmp_path) == sorted([*(path.name for path in others), "out"])


def test_an_exchange_that_was_killed_is_undone(tmp_path: Path) -> None:
    thing(tmp_path / ".out.0123abcd.old")
    thing(tmp_path / ".out.0123abcd.part")
    with pytest.raises(ZeroDivisionError), replacing_folder(tmp_path / "out", THING):
        raise ZeroDivisionError
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == OLD


def test_a_file_or_a_circle_of_links_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("years of work")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(NotOwnError, match="is not a folder"), replacing_folder(tmp_path / "file", THING):
        pass
    with pytest.raises(ConfigurationError, match="circle"), replacing_folder(tmp_path / "circle", THING):
        pass
    assert (tmp_path / "file").read_text() == "years of work"


@pytest.mark.parametrize("content", ["text", "{}", "[]", '{"x": 1}'])
def test_a_file_that_is_no_output_is_kept(tmp_path: Path, content: str) -> None:
    kind = OutputKind(name="a result", marks={"": frozenset({"models"})})
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(NotOwnError, match=r"a\.json exists and is not a result"):
        remove_own(tmp_path / "a.json", kind)
    (tmp_path / "a.json").write_text('{"models": {}}')
    remove_own(tmp_path / "a.json", kind)
    assert names(tmp_path) == []


def test_the_target_of_a_link_is_emptied_and_stays(tmp_path: Path) -> None:
    thing(tmp_path / "disk")
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    remove_own(tmp_path / "out", THING)
    assert (names(tmp_path), names(tmp_path / "out")) == (["disk", "out"], [])


@pytest.mark.parametrize("inside", ["rows", "rows/deeper", "rows/x.parquet", "scores/a/b"])
def test_an_output_among_the_files_of_another_is_refused(tmp_path: Path, inside: str) -> None:
    (tmp_path / "other" / "rows").mkdir(parents=True)
    (tmp_path / "other" / "scores").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("{}")
    output = tmp_path / "other" / inside / "out"
    with pytest.raises(NotOwnError, match=r"is inside .*other/.*, among the files of another output"):
        require_own(output, THING)
    with pytest.raises(NotOwnError, match="among the files of another output"):
        THING.refuse_another(output)
    require_own(tmp_path / "other" / "beside", THING)
    require_own(tmp_path / "rows" / "out", THING)
