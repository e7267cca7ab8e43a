"""Reciprocal rank fusion (Cormack, Clarke and Büttcher 2009): one ranking from several.

A passage scores the sum of ``1 / (k + rank)`` over the rankings it stands in, ranks from 1. Only the order of
each ranking counts, so scores of different scales need no tuning.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from tools_service.retrieval.passages import Hit

K = 60  # the authors' value: the first ranks differ little, so that agreement decides


def fuse(rankings: Sequence[Sequence[Hit]], k: int = K) -> list[Hit]:
    """All passages of the rankings, best first; the earlier passage wins a tie."""
    scores: defaultdict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, hit in enumerate(ranking, start=1):
            scores[hit.passage] += 1 / (k + rank)
    return [Hit(*one) for one in sorted(scores.items(), key=lambda one: (-one[1], one[0]))]
