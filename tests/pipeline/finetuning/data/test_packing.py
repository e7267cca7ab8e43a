"""Which examples share a row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.finetuning.data.packing import packed_rows

pytestmark = pytest.mark.unit


@given(
    st.lists(st.integers(2, 64), min_size=1, max_size=40),
    st.integers(64, 130),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_every_example_is_in_one_row_and_no_row_is_too_long(
    of_batch: list[int], capacity: int, workers: int, max_rows: int
) -> None:
    # The batch is some of all examples, in another order.
    lengths = np.array([99, *of_batch, 77])
    indices = np.random.default_rng(0).permutation(np.arange(1, len(of_batch) + 1))
    by_forward = packed_rows(indices, lengths, capacity, workers, max_rows)
    rows = [row for of_workers in by_forward for of_worker in of_workers for row in of_worker]
    assert sorted(index for row in rows for index in row.tolist()) == sorted(indices.tolist())
    assert max(int(lengths[row].sum()) for row in rows) <= capacity
    # Every forward of every worker has equally many rows, and there are no more than without packing.
    assert {len(of_workers) for of_workers in by_forward} == {workers}
    [width] = {len(of_worker) for of_workers in by_forward for of_worker in of_workers}
    assert width <= max_rows
    assert len(by_forward) <= -(-len(of_batch) // (workers * max_rows))
    again = packed_rows(indices, lengths, capacity, workers, max_rows)
    assert [[[row.tolist() for row in rows_] for rows_ in forward] for forward in again] == [
        [[row.tolist() for row in rows_] for rows_ in forward] for forward in by_forward
    ]


def test_rows_are_few_and_about_as_long() -> None:
    lengths = np.array([10, 20, 30, 40, 50, 60, 70, 80])  # 360 tokens, so four rows of 100
    [of_workers] = packed_rows(np.arange(8), lengths, 100, 2, 2)
    tokens = [int(lengths[row].sum()) for rows in of_workers for row in rows]
    assert tokens == [90, 90, 90, 90]


def test_rows_that_cannot_be_level_are_filled_one_after_another() -> None:
    """By the shortest row, 3 + 3 would be followed by 2 + 2 + 2 and one of 3: too long."""
    lengths = np.array([3, 3, 2, 2, 2])
    [[rows]] = packed_rows(np.arange(5), lengths, 6, 1, 2)
    assert [sorted(lengths[row].tolist()) for row in rows] == [[3, 3], [2, 2, 2]]


def test_a_worker_without_examples_has_empty_rows() -> None:
    [of_workers] = packed_rows(np.arange(2), np.array([5, 7]), 16, 3, 4)
    assert [[row.tolist() for row in rows] for rows in of_workers] == [[[]], [[0]], [[1]]]
