"""Segments, their merge, and the search: the scores are bm25s's, and pruning never changes a result."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bm25s
import numpy as np
import pytest

from tests.tools_service.encyclopedia import indexed
from tools_service.retrieval.bm25 import Bm25
from tools_service.retrieval.passages import PassageStore
from tools_service.retrieval.terms import STOP_WORDS, TermIds, analyze

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 passages of words drawn by Zipf's law: rare and frequent terms, and many ties."""
    draw = random.Random(0)
    weights = [1 / (rank + 1) for rank in range(2_000)]
    words = [f"{'xyz'[n % 3]}{n}" for n in range(2_000)]
    texts = (" ".join(draw.choices(words, weights, k=draw.randint(5, 90))) for _ in range(1_500))
    articles = [(draw.choice(words), text) for text in texts] * 2
    return indexed(tmp_path_factory.mktemp("zipf"), articles[:2_000]).index


@pytest.fixture(scope="module")
def reference(folder: Path) -> bm25s.BM25:
    store = PassageStore(folder)
    passages = [store[n] for n in range(len(store))]
    made = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    made.index([analyze(f"{one.title} {one.text}") for one in passages], show_progress=False)
    return made


def test_scores_are_bm25s_to_the_last_bit(folder: Path, reference: bm25s.BM25) -> None:
    ours, theirs = Bm25(folder), reference.scores
    assert len(ours.vocabulary) == len([term for term in reference.vocab_dict if term])
    for term, number in reference.vocab_dict.items():
        if term:
            part = slice(theirs["indptr"][number], theirs["indptr"][number + 1])
            passages, scores = ours.postings(term)
            np.testing.assert_array_equal(passages, theirs["indices"][part])
            np.testing.assert_array_equal(scores, theirs["data"][part])


@pytest.mark.parametrize("k", [1, 7, 150, 5_000])
def test_pruning_never_changes_a_result(folder: Path, reference: bm25s.BM25, k: int) -> None:
    ours, draw = Bm25(folder), random.Random(k)
    terms = [term for term in reference.vocab_dict if term]
    for _ in range(60):
        query = draw.choices(terms[: draw.choice([20, 300, 2_000])], k=draw.randint(1, 9))
        every = reference.get_scores_from_ids(reference.get_tokens_ids(query)).astype(np.float64)
        hits = ours.search_terms(query, k)
        best = np.sort(every[every > 0])[::-1][:k]
        np.testing.assert_allclose([hit.score for hit in hits], best, rtol=1e-6)
        np.testing.assert_allclose(every[[hit.passage for hit in hits]], best, rtol=1e-6)
        assert hits == sorted(hits, key=lambda hit: (-hit.score, hit.passage))


def test_among_equal_passages_the_earlier_ones_win(tmp_path: Path) -> None:
    twins = [("First", "same words"), ("Other", "nothing alike"), ("Second", "same words")]
    bm25 = Bm25(indexed(tmp_path, twins).index)
    for k in (1, 2, 3, 10):
        assert [hit.passage for hit in bm25.search("same words", k)] == [0, 2][:k]


def test_scores_worked_by_hand(tmp_path: Path) -> None:
    """k1 0.9, b 0.4, Lucene's idf: three passages of 2, 2 and 5 terms (titles included)."""
    three = [("alpha", "beta"), ("gamma", "delta"), ("epsilon", "beta beta zeta eta")]
    bm25 = Bm25(indexed(tmp_path, three).index)
    # idf = ln(1 + (3 - 2 + .5) / (2 + .5)) = ln 1.6; tf / (tf + .9 * (.6 + .4 * length / 3))
    assert {hit.passage: hit.score for hit in bm25.search("beta", 3)} == {
        0: pytest.approx(0.470004 * 1 / (1 + 0.9 * (0.6 + 0.4 * 2 / 3)), rel=1e-5),
        2: pytest.approx(0.470004 * 2 / (2 + 0.9 * (0.6 + 0.4 * 5 / 3)), rel=1e-5),
    }
    (once, *_), (twice, *_) = bm25.search("zeta", 1), bm25.search("zeta zeta", 1)
    assert twice.score == 2 * once.score


def test_nothing_is_found_for_nothing(folder: Path) -> None:
    bm25 = Bm25(folder)
    for query in ("", "the of and", "unheard words", "\x00\ud800", "x" * 10**6):
        assert bm25.search(query, 5) == []
    assert bm25.search("x0", 0) == []


def test_threads_search_at_once_and_agree(folder: Path) -> None:
    bm25 = Bm25(folder)
    queries = [f"x{3 * n} y{3 * n + 1} z2" for n in range(100)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda query: bm25.search(query, 3), queries)) == [
            bm25.search(query, 3) for query in queries
        ]


def test_terms_are_stems_of_words_without_stop_words() -> None:
    assert analyze("The Cast-Iron pans of 1984, a b C3PO!") == ["cast", "iron", "pan", "1984", "c3po"]
    assert len(STOP_WORDS) == 33


@pytest.mark.parametrize(
    "text",
    [
        "The runner runs; Écluse 水門 RUNNING the river's " + "y" * 100,
        "The runner runs; RUNNING the river's a_b __c d1 e " + "y" * 100,
        "".join(f"{chr(code)}{chr(code)}Is{chr(code)}we're x{chr(code)}" for code in range(128)) + "y" * 100,
    ],
)
def test_passages_and_queries_are_analysed_alike(text: str) -> None:
    term_ids = TermIds()
    found = term_ids.analyze(text)
    terms = list(term_ids.terms)
    assert [terms[number] for number in found] == analyze(text)
    assert max(map(len, terms)) == 64
