"""Reciprocal rank fusion (Cormack, Clarke and Büttcher 2009): several rankings become one.

A passage scores the sum of ``1 / (k + rank)`` over its rankings; ranks count from 1. Scores are not
used, so that rankings with different scales need no tuning.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from tools_service.retrieval.passages import Hit

K = 60  # the authors' value: top ranks differ little, so that agreement between rankings decides


def fuse(rankings: Sequence[Sequence[Hit]], k: int = K) -> list[Hit]:
    """Return all passages of the rankings, best first; ties go to the earlier passage."""
    scores: defaultdict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, hit in enumerate(ranking, start=1):
            scores[hit.passage] += 1 / (k + rank)
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return [Hit(passage, score) for passage, score in ranked]
