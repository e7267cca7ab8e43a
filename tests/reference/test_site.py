"""The site of the documentation: it builds without a warning, and a page needs no other host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from cluster.submit import ROOT
from tests.browser import chromium

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]  # no Ray, but half a minute of work

LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}


class Page(HTMLParser):
    """What a page loads, what it links to, and the names that links may go to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: set[str] = set()
        self.links: set[str] = set()
        self.names: set[str] = set()
        self.classes: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.names.add(values.get("id", ""))
        self.classes |= set(values.get("class", "").split())
        if tag == "a":
            self.links.add(values.get("href", ""))
        elif tag in LOADED:
            self.loaded.add(values.get(LOADED[tag], ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it: a warning is an error (`strict` in mkdocs.yml)."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_page_of_docs_is_in_the_site(site: Path) -> None:
    for source in (ROOT / "docs").rglob("*.md"):
        name = source.relative_to(ROOT / "docs").with_suffix(".html")
        name = name.with_name("index.html") if name.name == "README.html" else name
        assert (site / name).is_file(), name


def test_no_page_loads_anything_from_another_host(pages: dict[Path, Page]) -> None:
    assert len(pages) > 60
    for path, page in pages.items():
        assert not [address for address in page.loaded if urlsplit(address).netloc], path
        assert "mermaid" not in page.classes, path  # its script would come from another host
    styles = [file for path in pages for file in path.parent.glob("*.css")]
    assert not [file for file in styles if "http" in file.read_text()]


def test_every_local_link_of_a_page_leads_somewhere(pages: dict[Path, Page], site: Path) -> None:
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # served for any address, so its links are absolute
        for link in page.links | page.loaded:
            address = urlsplit(link)
            if address.scheme or address.netloc or not (address.path or address.fragment):
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (path, link)
            if address.fragment and target in pages:
                assert unquote(address.fragment) in pages[target].names, (path, link)


def test_no_page_shows_marks_of_markdown(site: Path) -> None:
    """A table, link or list that was not recognised leaves its marks in the text."""
    for path in site.rglob("*.html"):
        body = re.sub(r"(?s)<(pre|code|script|style|nav|svg)\b.*?</\1>", "", path.read_text())
        text = re.sub(r"<[^>]*>", "", body)
        assert not re.findall(r"\n\| .*|\]\(\S+\)|\*\*\w|^#+ ", text), path


def test_the_search_finds_pages_of_docs_and_of_the_reference(site: Path) -> None:
    index = (site / "search" / "search_index.json").read_text()
    for words in ("reference/commands/annotate.html", "faq.html#no-calls-are-kept-why", "concepts.html"):
        assert words in index


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_search_works_in_a_browser_and_asks_no_other_host(site: Path, tmp_path: Path) -> None:
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(site))) as server,
        chromium(tmp_path) as page,
    ):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_address[1]}"
            page.send("Runtime.enable")
            page.send("Log.enable")
            page.open(f"{address}/index.html?q=threshold")
            page.wait_for("document.querySelectorAll('.md-search-result__link').length > 3")
            asked = page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
            assert asked
            assert all(name.startswith((address, "data:", "blob:")) for name in asked)
            assert not page.complaints
        finally:
            server.shutdown()
            thread.join()


def test_a_page_opens_from_the_file_system(site: Path, tmp_path: Path) -> None:
    with chromium(tmp_path) as page:
        page.open((site / "concepts.html").as_uri())
        page.wait_for("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert page.evaluate("document.images.length") == 5
