"""The file: one page with its data, its policy, and what it may replace."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.html.data import Curve, Report, TrainingSection
from pipeline.report.html.document import ASSETS, render, write_report
from tests.pipeline.report.html.page_samples import BROKEN
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit

EMPTY = Report(title="Nothing", folder="runs/a", created="2026-11-28T14:10:00+00:00", version="0.1.0")


class Elements(HTMLParser):
    """The contents of scripts and styles, and the attributes of all elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.contents: list[tuple[str, str]] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        if self._open in ("script", "style"):
            self.contents.append((self._open, data))

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


def scripts(report: Report) -> tuple[Any, str]:
    """The page's data, and its program."""
    data, program = (content for tag, content in Elements(render(report)).contents if tag == "script")
    assert "<" not in data
    return json.loads(data), program


def test_hostile_data_stays_in_its_script() -> None:
    report = EMPTY.model_copy(update={"title": BROKEN, "problems": (BROKEN,)})
    data, program = scripts(report)
    assert data == report.model_dump(mode="json")
    assert program == scripts(EMPTY)[1]
    render(report).encode("utf-8")


def test_the_policy_allows_the_pages_own_parts_alone() -> None:
    elements = Elements(render(EMPTY))
    [policy] = [
        value for name, value in elements.attributes if name == "content" and "default-src" in str(value)
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    for tag, content in elements.contents:
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert (f"'sha256-{digest}'" in policy) == (not content.startswith("{")), tag
    assert "unsafe" not in policy


def test_nothing_comes_from_elsewhere() -> None:
    for name, value in Elements(render(EMPTY)).attributes:
        assert name not in ("src", "srcset")
        assert name != "href" or str(value).startswith(("#", "data:"))
    for file in ASSETS.glob("*.*"):
        without_svg = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://\w|@import|innerHTML|insertAdjacentHTML|\beval\(", without_svg), (
            file.name
        )


def test_every_asset_is_in_the_page() -> None:
    page = render(EMPTY)
    for file in (*ASSETS.glob("*.js"), *ASSETS.glob("*.css")):
        assert file.read_text().strip() in page, file.name


def test_numbers_that_are_not_finite_become_null() -> None:
    curve = Curve(name="loss", steps=(1, 2), values=(float("nan"), float("inf")))
    training = TrainingSection(
        name="model",
        folder="runs/m",
        state="unfinished",
        facts=(),
        curves=(curve,),
        best_step=None,
        losses=(),
    )
    data, _ = scripts(EMPTY.model_copy(update={"trainings": (training,)}))
    assert data["trainings"][0]["curves"][0]["values"] == [None, None]


def test_a_report_is_replaced_and_another_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    write_report(EMPTY, path)
    write_report(EMPTY.model_copy(update={"title": "Something"}), path)
    assert "Something" in path.read_text(encoding="utf-8")
    path.write_text("my notes")
    with pytest.raises(ConfigurationError, match=r"report\.html exists and is not a report"):
        write_report(EMPTY, path)
    assert path.read_text() == "my notes"


def test_the_library_is_the_one_that_its_readme_names() -> None:
    table = (ASSETS / "uplot" / "README.md").read_text()
    rows = re.findall(r"^\| (\S+) \| (\d+) \| `(\w{64})` \|$", table, re.M)
    assert {name for name, _, _ in rows} == {file.name for file in (ASSETS / "uplot").iterdir()} - {
        "README.md"
    }
    for name, size, digest in rows:
        content = (ASSETS / "uplot" / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (int(size), digest)


def test_the_command_of_the_page_needs_no_installed_package() -> None:
    page = render(EMPTY)
    assert "`python -m pipeline merge --annotations " in page
    assert "toolformer merge" not in page
