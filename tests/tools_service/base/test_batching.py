"""Batches by length: the longest first, within a budget of tokens or rows."""

from __future__ import annotations

import pytest

from tools_service.base.batching import batch_by_length

pytestmark = pytest.mark.unit


def test_batches_hold_similar_lengths_within_the_budget() -> None:
    lengths = [3, 50, 4, 5, 48, 100, 2]
    batches = list(batch_by_length(lengths, max_tokens=100))
    assert batches == [[5], [1, 4], [3, 2, 0, 6]]
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert list(batch_by_length([7, 7], max_tokens=3)) == [[0], [1]]  # over the budget: alone
    assert list(batch_by_length([], max_tokens=3)) == []


def test_batches_hold_at_most_max_rows() -> None:
    lengths = [1, 2, 3, 4, 5]
    assert list(batch_by_length(lengths, max_rows=2)) == [[4, 3], [2, 1], [0]]
    assert list(batch_by_length(lengths, max_rows=2, max_tokens=5)) == [[4], [3], [2], [1, 0]]
    assert list(batch_by_length(lengths)) == [[4, 3, 2, 1, 0]]


def test_equal_and_empty_sequences_keep_their_order() -> None:
    assert list(batch_by_length([0, 0, 0], max_tokens=2)) == [[0, 1], [2]]
