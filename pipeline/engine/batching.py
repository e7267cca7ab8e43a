"""Sequences grouped into batches of like length, at the least cost.

In: lengths in tokens, and how many tokens a batch may have. Out: lists of indices. A batch
costs its rows times its longest, plus what it takes to start its forwards; the cheapest
grouping of the sorted lengths is a shortest path over them. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Starting a forward costs as much as running so many tokens.
_START_TOKENS = 128


def batch_by_length(
    lengths: Sequence[int],
    max_tokens: int,
    prefix: int = 0,
    forwards: int = 1,
) -> list[list[int]]:
    """Indices of `lengths` in batches, the longest sequences first.

    Every row is `prefix` tokens longer than its length; padded rows of a batch stay under
    `max_tokens` together (a row that is longer stands alone). `forwards` is the number of
    forwards that each batch starts.
    """
    count = len(lengths)
    negated = -np.array(lengths, dtype=int)
    order = np.argsort(negated, kind="stable")
    # least[i]: the least cost of batches for the first i sequences of the order;
    # origin[i]: where the last of these batches begins.
    least = np.full(count + 1, np.inf)
    least[0] = 0.0
    origin = np.zeros(count + 1, dtype=int)
    for first in range(count):
        longest = lengths[order[first]]
        # The first sequence of a batch is its longest and sets the padded width.
        fitting = max_tokens // max(1, longest + prefix)
        most = max(1, min(count - first, fitting))
        rows = np.arange(1, most + 1)
        cost = least[first] + _START_TOKENS * forwards + rows * longest
        ends = first + rows
        cheaper = cost < least[ends]
        least[ends[cheaper]] = cost[cheaper]
        origin[ends[cheaper]] = first
    # The path back from the end gives the batches, the last one first.
    batches = []
    end = count
    while end:
        start = int(origin[end])
        batches.append(order[start:end].tolist())
        end = start
    return batches[::-1]
