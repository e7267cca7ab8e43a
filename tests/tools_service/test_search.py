"""The encyclopedia, its index and WikiSearch, on a handful of articles."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
import zstandard

from tools_service import index as index_module
from tools_service.config import WikiSearchConfig
from tools_service.contract import ToolInput
from tools_service.encyclopedia import (
    Article,
    EncyclopediaError,
    Skipped,
    passages,
    read_articles,
    source_files,
)
from tools_service.index import SearchIndex, build, ensure
from tools_service.search import WikiSearch

pytestmark = pytest.mark.unit

ARTICLES = [
    ("Spin fishing", "Spin fishing uses a fast and lightweight reel. It is popular on rivers."),
    (
        "Fly fishing",
        "Fly fishing uses an artificial fly. The fly is cast with a rod, a reel and a weighted line.",
    ),
    ("Lighthouse", "A lighthouse is a tower that emits light and serves as a beacon for ships."),
    ("Écluse", "Une écluse est un ouvrage hydraulique. 水門 is the Japanese word."),
]


def config(source: Path, index: Path) -> WikiSearchConfig:
    return WikiSearchConfig(source=(str(source),), index=index)


def opened(config: WikiSearchConfig) -> WikiSearch:
    ensure(config)
    return WikiSearch(config)


def lines(articles: list[tuple[str, str]]) -> bytes:
    return b"".join(json.dumps({"title": title, "text": text}).encode() + b"\n" for title, text in articles)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "articles.jsonl"
    path.write_bytes(lines(ARTICLES))
    return path


@pytest.fixture
def search(source: Path, tmp_path: Path) -> WikiSearch:
    return opened(config(source, tmp_path / "index"))


def test_the_best_passage_with_its_title_or_a_reason(search: WikiSearch) -> None:
    queries = ["spinning reels", "towers for ships", "écluse", "", "  ", "zeppelin", "the of and", "a " * 600]
    answers = search([ToolInput(query) for query in queries])
    assert [one.result.split(" > ")[0] for one in answers[:3] if one.result] == [
        "Spin fishing",
        "Lighthouse",
        "Écluse",
    ]
    assert (
        answers[0].result
        == "Spin fishing > Spin fishing uses a fast and lightweight reel. It is popular on rivers."
    )
    assert [one.reason for one in answers[3:]] == [
        *("empty query", "empty query", "nothing found", "nothing found", "query too long")
    ]


def test_hits_are_ordered_by_score_and_ties_by_place(tmp_path: Path) -> None:
    source = tmp_path / "twins.jsonl"
    source.write_bytes(lines([("First", "same words"), ("Other", "nothing alike"), ("Second", "same words")]))
    index = SearchIndex(ensure(config(source, tmp_path / "index")))
    for k in (1, 2, 3, 10):
        hits = index.search("same words", k)
        assert [hit.passage for hit in hits] == [0, 2][:k]
    assert hits[0].score == hits[1].score > 0


def test_scores_are_bm25s(tmp_path: Path) -> None:
    """k1 0.9, b 0.4, Lucene's idf, worked by hand: three passages of 2, 2 and 5 terms (titles included)."""
    source = tmp_path / "three.jsonl"
    source.write_bytes(lines([("alpha", "beta"), ("gamma", "delta"), ("epsilon", "beta beta zeta eta")]))
    index = SearchIndex(ensure(config(source, tmp_path / "index")))
    scores = {hit.passage: hit.score for hit in index.search("beta", 3)}
    # idf = ln(1 + (3 - 2 + .5) / (2 + .5)) = ln 1.6; tf / (tf + .9 * (.6 + .4 * length / 3))
    assert scores == {
        0: pytest.approx(0.470004 * 1 / (1 + 0.9 * (0.6 + 0.4 * 2 / 3)), rel=1e-5),
        2: pytest.approx(0.470004 * 2 / (2 + 0.9 * (0.6 + 0.4 * 5 / 3)), rel=1e-5),
    }


def test_the_index_is_opened_by_memory_map(source: Path, tmp_path: Path) -> None:
    index = SearchIndex(ensure(config(source, tmp_path / "index")))
    arrays = [*index._bm25.scores.values(), index._offsets, index._passages]
    assert [type(array).__name__ for array in arrays if not isinstance(array, int)] == ["memmap"] * 5


def test_an_index_is_built_once_and_again_when_the_source_changed(source: Path, tmp_path: Path) -> None:
    folder = ensure(config(source, tmp_path / "index"))
    built = (folder / "manifest.json").stat().st_mtime_ns

    os.utime(source, (1, 1))  # the same content, checked out again
    assert (ensure(config(source, folder)) / "manifest.json").stat().st_mtime_ns == built

    text = source.read_text().replace("rivers", "rapids")  # the same size
    source.write_text(text)
    assert "rapids" in (opened(config(source, folder))([ToolInput("spin")])[0].result or "")


def test_other_settings_build_it_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ensure(config(source, tmp_path / "index"))
    monkeypatch.setitem(index_module.SETTINGS, "k1", 1.2)
    ensure(config(source, folder))
    assert json.loads((folder / "manifest.json").read_text())["settings"]["k1"] == 1.2


def test_who_has_the_old_index_open_keeps_it(source: Path, tmp_path: Path) -> None:
    search = opened(config(source, tmp_path / "index"))
    source.write_bytes(lines([("Otter", "A swimming animal.")]))
    ensure(config(source, tmp_path / "index"))
    assert (search([ToolInput("lighthouse")])[0].result or "").startswith("Lighthouse > ")


def test_the_manifest_counts_articles_passages_and_skipped_lines(tmp_path: Path) -> None:
    (tmp_path / "wiki").mkdir()
    broken = [
        b"{broken\n",
        b"\xff\xfe\n",
        b"[1]\n",
        b"\n",
        b'{"title": "x"}\n',
        b'{"title": " ", "text": "y"}\n',
    ]
    (tmp_path / "wiki" / "a.jsonl").write_bytes(lines(ARTICLES) + b"".join(broken))
    (tmp_path / "wiki" / "b.jsonl.gz").write_bytes(gzip.compress(lines(ARTICLES[:1])))
    (tmp_path / "wiki" / "notes.md").write_text("not an article")
    manifest = build(config(tmp_path / "wiki", tmp_path / "index"), progress=False)
    assert (manifest["articles"], manifest["passages"]) == (5, 5)
    assert manifest["skipped"] == {
        "not JSON": 1, "not UTF-8": 1, "not an object": 1, "empty line": 1, "no text": 1, "no title": 1,
    }  # fmt: skip
    skipped = [json.loads(line) for line in (tmp_path / "index" / "skipped.jsonl").read_text().splitlines()]
    assert skipped[0] == {"file": str(tmp_path / "wiki" / "a.jsonl"), "line": 5, "reason": "not JSON"}


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_a_truncated_file_gives_what_can_be_read_and_says_where_it_ended(tmp_path: Path, compress) -> None:  # type: ignore[no-untyped-def]
    suffix = ".gz" if compress is gzip.compress else ".zst"
    whole = compress(lines([(f"Title {n}", " ".join(str(n * m) for m in range(50))) for n in range(2_000)]))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(whole[: len(whole) // 2])
    *articles, last = read_articles([path])
    assert len(articles) > 100
    assert all(isinstance(one, Article) for one in articles)
    assert isinstance(last, Skipped)
    assert (last.line, last.reason) == (len(articles) + 1, "unreadable from here on: OSError")


def test_a_source_is_a_file_a_folder_or_a_glob(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json.gz", "c.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in source_files([str(tmp_path)])] == ["a.json.gz", "b.jsonl"]
    assert [path.name for path in source_files([str(tmp_path / "*.jsonl")])] == ["b.jsonl"]
    assert [path.name for path in source_files([str(tmp_path / "c.txt")])] == ["c.txt"]


def test_a_source_without_files_or_articles_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(EncyclopediaError, match=r"tools\.wikisearch\.source: nothing to read at .*nowhere"):
        ensure(config(tmp_path / "nowhere", tmp_path / "index"))
    (tmp_path / "empty.jsonl").write_text("{}\n")
    with pytest.raises(EncyclopediaError, match=r"no article in .*empty.jsonl"):
        ensure(config(tmp_path / "empty.jsonl", tmp_path / "index"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.jsonl"]  # nothing half-built remains


def test_a_folder_that_is_no_index_is_left_alone(source: Path, tmp_path: Path) -> None:
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(EncyclopediaError, match="not empty and not an index"):
        ensure(config(source, precious))
    assert (precious / "thesis.txt").read_text() == "years of work"


def test_opening_what_is_not_there_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(EncyclopediaError, match="python -m tools_service index"):
        WikiSearch(WikiSearchConfig(index=tmp_path / "nowhere"))


def test_passages_are_about_a_hundred_words_end_with_sentences_and_lose_nothing() -> None:
    text = " ".join(f"word{n}." if n % 13 == 12 else f"word{n}" for n in range(1_000))
    pieces = list(passages(text))
    assert " ".join(pieces) == text
    assert all(100 <= len(piece.split()) <= 150 for piece in pieces[:-1])
    assert all(piece.endswith(".") for piece in pieces[:-1])


def test_short_texts_are_one_passage_and_a_stub_joins_its_neighbour() -> None:
    assert list(passages("a few words")) == ["a few words"]
    assert [len(piece.split()) for piece in passages("word " * 125)] == [125]
    assert [len(piece.split()) for piece in passages("word " * 170)] == [170]
    assert [len(piece.split()) for piece in passages("word " * 400)] == [150, 150, 100]
