"""Wikipedia search (paper section 3): ``WikiSearch(term)`` answers ``Title > text``.

In: a query. Out: the best passage of an index (indexing/build.py), by BM25, by vectors or by both.
A query without a word, or without a hit, has no result. `Retriever` gives the ranked passages,
which QA reads. Results are not shortened here: the client caps them in tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tools_service.config import WikiSearchConfig
from tools_service.retrieval.bm25 import Bm25
from tools_service.retrieval.fusion import fuse
from tools_service.retrieval.index import read_manifest
from tools_service.retrieval.passages import Hit, Passage, PassageStore
from tools_service.tools.contract import ToolInput, ToolResult

if TYPE_CHECKING:
    from tools_service.retrieval.dense import DenseIndex

MAX_QUERY_CHARACTERS = 1_000

# A hybrid ranking is fused from this many hits of each retriever, or from `k` if that is more.
_FUSION_DEPTH = 100
_WORD = re.compile(r"[^\W_]")


class Retriever:
    """Ranks the passages of an index. Threads may share it."""

    def __init__(self, config: WikiSearchConfig) -> None:
        """Open the index at `config.index` for `config.retriever`.

        IndexFolderError if there is no index; VectorsError if it lacks the vectors.
        """
        manifest = read_manifest(config.index)
        self._passages = PassageStore(config.index)
        self._bm25 = Bm25(config.index) if config.retriever != "dense" else None
        self._dense: DenseIndex | None = None
        if config.retriever != "bm25":
            from tools_service.retrieval.dense import DenseIndex

            self._dense = DenseIndex(config, manifest)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """For each query, return the `k` best passages, best first; ties go to the earlier passage."""
        depth = max(k, _FUSION_DEPTH) if self._bm25 and self._dense else k
        by_terms = [self._bm25.search(query, depth) for query in queries] if self._bm25 else []
        by_vectors = self._dense.search(queries, depth) if self._dense else []
        if self._bm25 and self._dense:
            return [fuse(rankings)[:k] for rankings in zip(by_terms, by_vectors, strict=True)]
        return by_terms or by_vectors

    def passage(self, number: int) -> Passage:
        """Return a passage by its number."""
        return self._passages[number]


class WikiSearch:
    """`WikiSearch(term)`: a list of queries to a list of snippets or reasons."""

    name = "WikiSearch"

    def __init__(self, config: WikiSearchConfig, retriever: Retriever | None = None) -> None:
        """Open the index of `config`, unless there is a `retriever`."""
        self._retriever = retriever or Retriever(config)

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """Return the best passage for every query."""
        refusals = [_refusal(call.text) for call in inputs]
        queries = [call.text for call, refusal in zip(inputs, refusals, strict=True) if refusal is None]
        hits = iter(self._retriever.search(queries, 1) if queries else [])
        return [
            self._snippet(next(hits)) if refusal is None else ToolResult(reason=refusal)
            for refusal in refusals
        ]

    def _snippet(self, hits: Sequence[Hit]) -> ToolResult:
        if not hits:
            return ToolResult(reason="nothing found")
        passage = self._retriever.passage(hits[0].passage)
        return ToolResult(f"{passage.title} > {passage.text}")


def _refusal(query: str) -> str | None:
    """Return the reason why `query` is not searched for; None if it is."""
    if len(query) > MAX_QUERY_CHARACTERS:
        return "query too long"
    if not query.strip():
        return "empty query"
    return None if _WORD.search(query) else "no word to search for"
