"""Several examples in one row, so that less of a forward is padding.

In: the lengths of the examples of a batch. Out: which examples share a row, and which rows a forward of each
worker has. Number and width of the rows follow from the lengths alone, so every worker computes the same.
training.py keeps the examples of a row apart. This module knows no tokens and no model.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from pipeline.finetuning.data.augmented_files import Indices

Row = Indices
"""Indices of the examples in a row."""


def packed_rows(
    indices: Indices, lengths: Indices, capacity: int, workers: int, max_rows: int
) -> list[list[list[Row]]]:
    """The rows of a batch by forward and worker: as few forwards as possible, then as few rows in each.

    `lengths` are those of all examples, at most `capacity`, the tokens of a row. A forward has at most
    `max_rows` rows. Every forward of every worker has equally many; some may be empty.
    """
    longest_first = indices[np.argsort(-lengths[indices], kind="stable")]
    filled = _first_fit(longest_first, lengths, capacity)
    forwards = -(-len(filled) // (workers * max_rows))
    rows_per_forward = -(-len(filled) // (workers * forwards))
    slots = forwards * workers * rows_per_forward
    rows = _level(longest_first, lengths, slots)
    if max(_tokens(row, lengths) for row in rows) > capacity:
        rows = filled + [[] for _ in range(slots - len(filled))]
    # Rows of similar length are in one forward, and the workers wait little for one another.
    rows.sort(key=lambda row: _tokens(row, lengths))
    by_forward = iter([np.array(row, dtype=np.int64) for row in rows])
    return [
        [[next(by_forward) for _ in range(rows_per_forward)] for _ in range(workers)] for _ in range(forwards)
    ]


def _first_fit(longest_first: Indices, lengths: Indices, capacity: int) -> list[list[int]]:
    """First-fit decreasing: each example into the first row with room for it."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in longest_first.tolist():
        length = int(lengths[index])
        row = next((number for number, free in enumerate(room) if free >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(index)
        room[row] -= length
    return rows


def _level(longest_first: Indices, lengths: Indices, count: int) -> list[list[int]]:
    """`count` rows of about the same length: each example into the shortest row so far."""
    rows: list[list[int]] = [[] for _ in range(count)]
    shortest = [(0, number) for number in range(count)]
    for index in longest_first.tolist():
        tokens, number = heapq.heappop(shortest)
        rows[number].append(index)
        heapq.heappush(shortest, (tokens + int(lengths[index]), number))
    return rows


def _tokens(row: Sequence[int], lengths: Indices) -> int:
    return int(lengths[np.array(row, dtype=np.int64)].sum())
