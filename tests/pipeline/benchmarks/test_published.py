"""NAME=PATH, and running texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.benchmarks.example import BenchmarkFileError
from pipeline.benchmarks.published import names, published_name, sources_of
from pipeline.benchmarks.wikitext import wikitext

pytestmark = pytest.mark.unit


def test_a_path_is_a_file_of_the_users_own(tmp_path: Path) -> None:
    assert published_name(Path("questions/svamp.jsonl")) is None
    assert published_name(Path("questions/a=b.jsonl")) is None
    assert published_name(Path("svamp=a=b/SVAMP.json")) == ("svamp", Path("a=b/SVAMP.json"))
    assert published_name(Path("dateset=0")) == ("dateset", Path("0"))
    assert sources_of(Path("svamp=SVAMP.json")) == [Path("SVAMP.json")]
    assert sources_of(Path("own.jsonl")) == [Path("own.jsonl")]
    assert sources_of(Path("xquad_de=de.json,en.json")) == [Path("de.json"), Path("en.json")]
    assert sources_of(Path("dateset=0")) == []
    own = tmp_path / "nq=own.jsonl"
    own.touch()
    assert published_name(own) is None


def test_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(
        BenchmarkFileError, match=r"no benchmark 'svampp'; there are asdiv, asdiv_number.*nq, "
    ):
        published_name(Path("svampp=SVAMP.json"))
    with pytest.raises(BenchmarkFileError, match="name a file or folder after nq="):
        published_name(Path("nq="))
    with pytest.raises(BenchmarkFileError, match="dateset: name its files, dateset=PATH"):
        published_name(Path("dateset"))
    assert "wikitext" in names()


def test_wikitext_counts_lines_articles_and_words(tmp_path: Path) -> None:
    path = tmp_path / "wiki.test.raw"
    path.write_bytes(
        b" \r\n = Robert Boulter = \r\n \r\n Robert is an actor . \r\n"
        b" = = Career = = \r\n = = = 2000 = = = \r\n = Another = \r\n"
    )
    found = wikitext(path)
    assert (found.lines, found.articles, found.words) == (7, 2, 24)
    (tmp_path / "wiki.valid.raw").write_text("other")
    assert wikitext(tmp_path) == found
    (tmp_path / "empty.raw").write_text(" \n")
    with pytest.raises(BenchmarkFileError, match="the file holds none"):
        wikitext(tmp_path / "empty.raw")
    (tmp_path / "json.raw").write_text('{"text": "a"}\n')
    with pytest.raises(BenchmarkFileError, match="found JSON"):
        wikitext(tmp_path / "json.raw")
