"""Searches an index by BM25, by vectors, or by both, fused into one ranking.

In: queries. Out: hits for each, best first, and passages by number. The fusion is by reciprocal
rank (Cormack, Clarke and Büttcher 2009): scores are not used, so that they need not be comparable.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tools_service.base.errors import brief
from tools_service.base.files import cache_folder
from tools_service.config import WikiSearchConfig
from tools_service.retrieval.bm25 import Bm25
from tools_service.retrieval.index import damaged, read_manifest, require_whole
from tools_service.retrieval.passages import Hit, Passage, PassageStore

if TYPE_CHECKING:
    from tools_service.retrieval.dense import DenseIndex

# A hybrid ranking is fused from this many hits of each retriever, or from `k` if that is more.
_FUSION_DEPTH = 100
_RANK_CONSTANT = 60  # the authors' value: agreement of rankings counts more than top ranks


class Retriever:
    """Ranks the passages of an index. Threads may share it."""

    def __init__(self, config: WikiSearchConfig) -> None:
        """Open the index; IndexFolderError or VectorsError if it lacks what `config` asks for."""
        config = _with_local_index(config)
        self._folder = config.folder
        manifest = read_manifest(self._folder)
        require_whole(self._folder, manifest)
        self._passages = PassageStore(self._folder)
        self._bm25 = Bm25(self._folder) if config.retriever != "dense" else None
        self._dense: DenseIndex | None = None
        if config.retriever != "bm25":
            from tools_service.retrieval.dense import DenseIndex

            self._dense = DenseIndex(config, manifest)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """For each query, return the `k` best passages, best first; ties go to the earlier one.

        Raises IndexFolderError if the index is damaged.
        """
        with self._reading():
            return self._search(queries, k)

    def passage(self, number: int) -> Passage:
        """Return a passage by its number."""
        with self._reading():
            return self._passages[number]

    def _search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        depth = max(k, _FUSION_DEPTH) if self._bm25 and self._dense else k
        by_terms = [self._bm25.search(query, depth) for query in queries] if self._bm25 else []
        by_vectors = self._dense.search(queries, depth) if self._dense else []
        if self._bm25 and self._dense:
            return [fuse(rankings)[:k] for rankings in zip(by_terms, by_vectors, strict=True)]
        return by_terms or by_vectors

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn what impossible values in the arrays raise into an IndexFolderError."""
        try:
            yield
        except (IndexError, ValueError, OverflowError) as error:  # not UTF-8 is a ValueError
            raise damaged(self._folder, brief(error)) from error


def _with_local_index(config: WikiSearchConfig) -> WikiSearchConfig:
    """The same with the index on this machine, which is copied if it has to be."""
    if isinstance(config.index, Path) and config.local_copy is None:
        return config
    from tools_service.retrieval.local_copy import StoredIndex  # imports pyarrow

    folder = StoredIndex.at(config.index).copy_below(config.local_copy or cache_folder())
    return config.model_copy(update={"index": folder})


def fuse(rankings: Sequence[Sequence[Hit]]) -> list[Hit]:
    """Return all passages of the rankings, best first; ties go to the earlier passage."""
    scores: defaultdict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, hit in enumerate(ranking, start=1):
            scores[hit.passage] += 1 / (_RANK_CONSTANT + rank)
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return [Hit(passage, score) for passage, score in ranked]
