"""Every kind of file that an index is built from, and everything that can be wrong with one."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.tools_service.encyclopedia import ARTICLES, lines
from tools_service.indexing.sources import (
    Article,
    Block,
    Skipped,
    SourceError,
    read_articles,
    read_blocks,
    source_files,
)

pytestmark = pytest.mark.unit


def read(file: Path, characters: int = 10**6) -> list[Article | Skipped]:
    return [item for block in read_blocks([file], characters) for item in read_articles(block)]


def jsonl(file: Path, *records: Any) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_plain_jsonl(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ARTICLES))
    assert read(tmp_path / "a.jsonl") == [Article(title, text) for title, text in ARTICLES]


def test_kilts_knowledge_source_without_marks_headings_and_the_repeated_title(tmp_path: Path) -> None:
    page = {
        "wikipedia_id": "290",
        "wikipedia_title": "A",
        "text": [
            "A\n",
            "A is the first letter.\n",
            "Section::::History.\n",
            "Section::::History.:Variants.\n",
            "It came from Phoenicia.\n",
            "BULLET::::- The Etruscans wrote it\n",
            "BULLET::::  - as the Greeks did\n",
        ],
        "anchors": [{"text": "letter", "href": "Letter"}],
    }
    wanted = (
        "A is the first letter.\n\nIt came from Phoenicia.\n\nThe Etruscans wrote it\n\nas the Greeks did\n"
    )
    assert read(jsonl(tmp_path / "kilt", page)) == [Article("A", wanted)]


@pytest.mark.parametrize("record", [{}, {"text": "no list"}, {"text": ["B\n"]}, {"text": ["x", 7]}])
def test_a_page_of_kilt_without_text_is_skipped(tmp_path: Path, record: dict[str, Any]) -> None:
    file = jsonl(tmp_path / "kilt", {"wikipedia_title": "B", **record})
    assert read(file) == [Skipped(str(file), 1, "no text")]


def test_dprs_passages_stay_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "psgs_w100.tsv"
    file.write_text(
        "id\ttext\ttitle\n"
        '1\t"Aaron ( or ; ""Ahärôn"") is a prophet"\tAaron\n'
        '2\tplain text\t"The ""Queen"""\n'
        '3\t"never closed\tX\n'
        "4\ttwo columns\n"
        "5\t \tEmpty\n"
    )
    *passages, unclosed, short, empty = read(file)
    assert passages == [
        Skipped(str(file), 1, "header"),
        Article("Aaron", 'Aaron ( or ; "Ahärôn") is a prophet', is_passage=True),
        Article('The "Queen"', "plain text", is_passage=True),
    ]
    assert isinstance(unclosed, Skipped)
    assert unclosed.kind == "not a tsv row"
    assert short == Skipped(str(file), 5, "not a tsv row: 2 columns, wanted id, text, title")
    assert empty == Skipped(str(file), 6, "no text")


@pytest.mark.parametrize(
    ("record", "title"),
    [
        ({"url": "https://en.example.org/wiki/Cast_iron_%28food%29"}, "Cast iron (food)"),
        ({"metadata": {"url": "http://x.org/2019/big-news.html?p=3"}}, "big news"),
        ({"id": "http://x.org/about-us/"}, "about us"),
        ({"metadata": {"title": "Its own", "url": "http://x.org/other"}}, "Its own"),
        ({"url": "http://x.org/"}, "The first line"),
        ({"url": "http://x.org/12345"}, "The first line"),
        ({"url": "http://[broken", "id": "17", "metadata": None}, "The first line"),
        ({"title": None}, "The first line"),
    ],
)
def test_documents_of_the_web_are_called_after_their_url_or_first_line(
    tmp_path: Path, record: dict[str, Any], title: str
) -> None:
    text = "\nThe first line\nThe second line"
    assert read(jsonl(tmp_path / "web", {"text": text, **record})) == [Article(title, text)]


def test_a_first_line_is_cut_to_a_title_of_whole_words(tmp_path: Path) -> None:
    texts = ["many words " * 50, "x" * 200]
    titles = [item.title for item in read(jsonl(tmp_path / "a", *({"text": text} for text in texts)))]  # type: ignore[union-attr]
    assert titles == [("many words " * 9).strip(), "x" * 100]


def test_what_gives_no_article_is_skipped_with_file_line_and_reason(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(
        lines(ARTICLES[:1])
        + b"{broken\n\xff\xfe\n[1]\n\n"
        + b'{"title": "x"}\n{"title": " ", "text": "y"}\n{"title": 3, "text": "y"}\n'
        + json.dumps({"title": "t" * 1_001, "text": "y"}).encode()
    )
    found = [item for item in read(file) if isinstance(item, Skipped)]
    assert sorted((one.line, one.kind) for one in found) == [
        (2, "not JSON"),
        (3, "not UTF-8"),
        (4, "not an object"),
        (5, "empty line"),
        (6, "no text"),
        (7, "no title"),
        (8, "no title"),
        (9, "title too long"),
    ]
    assert {one.file for one in found} == {str(file)}


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress, bz2.compress])
def test_compressed_files_are_recognised_whatever_they_are_called(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "dump").write_bytes(compress(lines(ARTICLES)))
    assert read(tmp_path / "dump") == [Article(title, text) for title, text in ARTICLES]


@pytest.mark.parametrize(
    "compress", [gzip.compress, zstandard.compress, lambda data: bz2.compress(data, compresslevel=1)]
)
def test_a_truncated_file_gives_what_can_be_read_and_says_where_it_ended(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    noise = random.Random(0)
    articles = [(f"Title {n}", noise.randbytes(500).hex()) for n in range(600)]
    whole = compress(lines(articles))
    (tmp_path / "a").write_bytes(whole[: len(whole) * 3 // 4])
    (last,) = (item for item in read(tmp_path / "a") if isinstance(item, Skipped))
    assert last.kind == "damaged file"
    assert last.line > 100
    assert f"nothing after line {last.line - 1} can be read" in last.reason


def test_blocks_hold_whole_lines_in_order_and_never_two_files(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(lines(ARTICLES))
    blocks = list(read_blocks(source_files([str(tmp_path)]), characters=200))
    assert [(Path(one.file).name, [number for number, _ in one.lines]) for one in blocks] == [
        ("a.jsonl", [1, 2]), ("a.jsonl", [3, 4]), ("b.jsonl", [1, 2]), ("b.jsonl", [3, 4]),
    ]  # fmt: skip


@pytest.mark.parametrize("content", ["A book.\nIts first page.\n", "[\n1]", "a,b,c\n", "\x00\x01"])
def test_a_file_of_another_kind_is_refused_before_anything_is_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ARTICLES))
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(SourceError, match=r"\.source: .*b\.json is neither jsonl .* nor tsv"):
        next(read_blocks(source_files([str(tmp_path)])))


@pytest.mark.parametrize(
    "header", ["id\ttitle\ttext", '"Title"\t"Text"\t"ID"'], ids=["title first", "in quotes"]
)
def test_columns_in_another_order_are_refused(tmp_path: Path, header: str) -> None:
    (tmp_path / "a.tsv").write_text(f"{header}\n1\tA\tthe first letter\n")
    with pytest.raises(SourceError, match=r"a\.tsv has the columns .* wanted id, text, title"):
        next(read_blocks([tmp_path / "a.tsv"]))


def test_a_header_in_capitals_is_no_passage(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("ID\tText\tTitle\n1\tthe first letter\tA\n")
    assert read(tmp_path / "a.tsv")[1:] == [Article("A", "the first letter", is_passage=True)]


@pytest.mark.parametrize("content", ["", " \n\t\n"])
def test_an_empty_file_is_skipped(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    assert read(tmp_path / "a.jsonl") == [Skipped(str(tmp_path / "a.jsonl"), 1, "empty file")]


def test_a_source_is_a_file_a_folder_or_a_glob(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json.gz", "d.tsv.bz2", "c.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in source_files([str(tmp_path)])] == ["a.json.gz", "b.jsonl", "d.tsv.bz2"]
    two = [str(tmp_path / "c.txt"), str(tmp_path / "*.jsonl")]
    assert [path.name for path in source_files(two)] == ["c.txt", "b.jsonl"]
    with pytest.raises(SourceError, match=r"tools\.wikisearch\.source: nothing to read at .*nowhere"):
        source_files([str(tmp_path / "nowhere")])


def test_titles_are_one_line_of_valid_text() -> None:
    record = json.dumps({"title": " two\nlines \ud800", "text": "x"})
    assert list(read_articles(Block("f", "jsonl", [(1, record)]))) == [Article("two lines ?", "x")]


@pytest.mark.timeout(20)
def test_links_and_pipes_are_named_and_no_file_is_read_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ARTICLES))
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")
    (tmp_path / "gone.jsonl").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with caplog.at_level(logging.WARNING):
        assert [path.name for path in source_files([str(tmp_path), str(tmp_path / "*.jsonl")])] == ["a.jsonl"]
    for name in ("loop", "b.jsonl", "gone.jsonl", "pipe.jsonl"):
        assert name in caplog.text


@pytest.mark.parametrize(
    "source",
    ["", "  ", "pipe.jsonl", "null.jsonl", "gone.jsonl", "pipe*", "a\0b", "x" * 5_000, "~nobody-there"],
)
def test_a_source_that_cannot_be_read_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(lines(ARTICLES))
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "null.jsonl").symlink_to("/dev/null")
    (tmp_path / "gone.jsonl").symlink_to("nowhere")
    with pytest.raises(SourceError, match=r"^tools\.wikisearch\.source: ") as error:
        source_files([source])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "content",
    [
        b'[{"title": "x", "text": "y"}]',
        b'{\n"title": "x"\n}',
        b'[\n{"title": "x", "text": "y"},\n{"title": "x"}]',
        b'[{"a": 1},\n{"b": 2}]',
    ],
)
def test_json_over_several_lines_is_refused_with_the_way_to_convert_it(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(SourceError, match=r"a\.json is neither jsonl .*jq -c"):
        next(read_blocks([tmp_path / "a.json"]))


def test_odd_values_cost_themselves_only(tmp_path: Path) -> None:
    records = [
        {"title": "A", "text": "x\ud800y"},
        {"url": "http://x.org/" + "u" * 5_000, "text": "The first line"},
        {"metadata": {"title": 7, "url": []}, "id": {}, "text": "The first line"},
    ]
    file = jsonl(tmp_path / "a.jsonl", *records)
    with file.open("ab") as stream:
        stream.write(b'{"title": "B", "text": "z", "n": ' + b"9" * 5_000 + b"}\n")
    first_line = Article("The first line", "The first line")
    assert read(file) == [Article("A", "x?y"), first_line, first_line, Article("B", "z")]
