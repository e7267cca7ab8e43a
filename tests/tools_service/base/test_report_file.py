"""A report in an output folder changes nothing of what the folder is; a page of a user is left alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tools_service.base.fingerprint import FileState, input_states
from tools_service.base.ownership import NotOwnError, OutputKind, remove_own, replacing_folder
from tools_service.base.report_file import MARK, REPORT, is_report

pytestmark = pytest.mark.unit
KIND = OutputKind(
    name="a test's output",
    marks={"manifest.json": frozenset({"texts"})},
    paths=(r"manifest\.json", r"report\.html(\.part)?"),
)
PAGE = f"<!doctype html>\n<html><head>{MARK}</head></html>"


def output(folder: Path, page: str | None) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"texts": 1}))
    if page is not None:
        (folder / REPORT).write_text(page)
    return folder


def test_a_report_is_told_by_its_mark(tmp_path: Path) -> None:
    folder = output(tmp_path / "o", PAGE)
    assert is_report(folder / REPORT)
    for content in (b"<html>mine</html>", b"\xff\xfe\x00", b"", b"x" * 3_000 + MARK.encode()):
        (folder / REPORT).write_bytes(content)
        assert not is_report(folder / REPORT)
    assert not is_report(folder)
    assert not is_report(folder / "nothing")
    os.mkfifo(folder / "pipe")
    assert not is_report(folder / "pipe")


def test_an_output_with_a_report_is_replaced_and_removed_whole(tmp_path: Path) -> None:
    folder = output(tmp_path / "o", PAGE)
    with replacing_folder(folder, KIND) as new:
        (new / "manifest.json").write_text(json.dumps({"texts": 2}))
    assert [path.name for path in folder.iterdir()] == ["manifest.json"], "the report was of the old output"
    (folder / REPORT).write_text(PAGE)
    remove_own(folder, KIND)
    assert not folder.exists()


def test_a_page_of_a_user_is_named_and_kept(tmp_path: Path) -> None:
    folder = output(tmp_path / "o", "<html>years of work</html>")
    with pytest.raises(NotOwnError, match=r"holds report\.html"), replacing_folder(folder, KIND):
        pass
    with pytest.raises(NotOwnError, match=r"holds report\.html"):
        remove_own(folder, KIND)
    assert (folder / REPORT).read_text() == "<html>years of work</html>"


def test_a_report_is_no_input(tmp_path: Path) -> None:
    folder = output(tmp_path / "o", None)
    before = list(input_states([folder]))
    (folder / REPORT).write_text(PAGE)
    assert list(input_states([folder])) == before
    (folder / REPORT).write_text("<html>a text of the corpus</html>")
    names = [Path(state.name).name for state in input_states([folder]) if isinstance(state, FileState)]
    assert names == ["manifest.json", REPORT]
