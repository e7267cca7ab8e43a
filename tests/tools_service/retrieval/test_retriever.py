"""Reciprocal rank fusion, worked by hand."""

from __future__ import annotations

import pytest

from tools_service.retrieval.passages import Hit
from tools_service.retrieval.retriever import fuse

pytestmark = pytest.mark.unit


def test_ranks_count_and_scores_do_not() -> None:
    first = [Hit(7, 1e9), Hit(3, 1.0)]
    second = [Hit(3, 0.2), Hit(9, 0.1), Hit(7, 0.05)]
    assert fuse([first, second]) == [
        Hit(3, pytest.approx(1 / 62 + 1 / 61)),
        Hit(7, pytest.approx(1 / 61 + 1 / 63)),
        Hit(9, pytest.approx(1 / 62)),
    ]


def test_the_earlier_passage_wins_a_tie_and_nothing_gives_nothing() -> None:
    assert [hit.passage for hit in fuse([[Hit(5, 1.0)], [Hit(2, 1.0)]])] == [2, 5]
    assert fuse([[], []]) == []
