"""Wikipedia search (paper section 3): ``WikiSearch(term)`` answers with a snippet, ``Title > text``.

In: a query. Out: the passage that ranks first in the index that index.py builds: by BM25, by the closeness of
vectors, or by both, as the configuration says. A query without a word to search for, or without a hit, has no
result. `open_retriever` gives the ranked passages themselves, which QA reads. Results are not shortened here
(the client caps them in tokens).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tools_service.config import WikiSearchConfig
from tools_service.retrieval.bm25 import Bm25
from tools_service.retrieval.fusion import fuse
from tools_service.retrieval.index import read_manifest
from tools_service.retrieval.passages import Hit, Passage, PassageStore
from tools_service.tools.contract import ToolInput, ToolResult

if TYPE_CHECKING:
    from tools_service.retrieval.dense import DenseIndex

__all__ = ["Hit", "Passage", "Retriever", "WikiSearch", "open_retriever"]

MAX_QUERY_CHARACTERS = 1_000

# A hybrid ranking is fused from this many of each, or as many as are asked for.
_FUSED = 100
_WORD = re.compile(r"[^\W_]")


class Retriever(Protocol):
    """Ranks the passages of one index. Any number of threads may use one."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """For each query the `k` best passages, or fewer, best first; ties go to the earlier passage."""
        ...

    def passage(self, number: int) -> Passage:
        """One passage by its number."""
        ...


def open_retriever(config: WikiSearchConfig) -> Retriever:
    """What searches the index at `config.index` in the way that `config.retriever` says.

    IndexFolderError if there is no index; VectorsError if vectors of that kind and encoder are wanted and it
    has others, or none.
    """
    manifest = read_manifest(config.index)
    if config.retriever == "bm25":
        return _Lexical(config.index)
    from tools_service.retrieval.dense import DenseIndex

    vectors = DenseIndex(config, manifest)
    return _Dense(config.index, vectors) if config.retriever == "dense" else _Hybrid(config.index, vectors)


class _Opened:
    def __init__(self, folder: Path) -> None:
        self._passages = PassageStore(folder)

    def passage(self, number: int) -> Passage:
        return self._passages[number]


class _Lexical(_Opened):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._bm25 = Bm25(folder)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [self._bm25.search(query, k) for query in queries]


class _Dense(_Opened):
    def __init__(self, folder: Path, vectors: DenseIndex) -> None:
        super().__init__(folder)
        self._vectors = vectors

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return self._vectors.search(queries, k)


class _Hybrid(_Lexical):
    def __init__(self, folder: Path, vectors: DenseIndex) -> None:
        super().__init__(folder)
        self._vectors = vectors

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        depth = max(k, _FUSED)
        both = zip(super().search(queries, depth), self._vectors.search(queries, depth), strict=True)
        return [fuse(rankings)[:k] for rankings in both]


class WikiSearch:
    """`WikiSearch(term)`: a list of queries to a list of snippets or reasons."""

    name = "WikiSearch"

    def __init__(self, config: WikiSearchConfig, retriever: Retriever | None = None) -> None:
        """Opens `config`'s index, unless another `retriever` is given."""
        self._retriever = retriever or open_retriever(config)

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """The best passage for every query."""
        queries = [one.text for one in inputs]
        asked = [query for query in queries if _refusal(query) is None]
        found = iter(self._retriever.search(asked, 1) if asked else [])
        return [
            ToolResult(reason=reason) if (reason := _refusal(query)) else self._snippet(next(found))
            for query in queries
        ]

    def _snippet(self, hits: Sequence[Hit]) -> ToolResult:
        if not hits:
            return ToolResult(reason="nothing found")
        passage = self._retriever.passage(hits[0].passage)
        return ToolResult(f"{passage.title} > {passage.text}")


def _refusal(query: str) -> str | None:
    if len(query) > MAX_QUERY_CHARACTERS:
        return "query too long"
    if not query.strip():
        return "empty query"
    return None if _WORD.search(query) else "no word to search for"
