"""Wikipedia search (paper section 3): ``WikiSearch(term)`` answers with a snippet, ``Title > text``.

In: a query. Out: the passage that ranks first in the index that index.py builds. A query without a word
to search for, or without a hit, has no result. Results are not shortened here (the client caps them in
tokens).
"""

from __future__ import annotations

from collections.abc import Sequence

from tools_service.config import WikiSearchConfig
from tools_service.contract import ToolInput, ToolResult
from tools_service.index import SearchIndex

MAX_QUERY_CHARACTERS = 1_000


class WikiSearch:
    """`WikiSearch(term)`: a list of queries to a list of snippets or reasons."""

    name = "WikiSearch"

    def __init__(self, config: WikiSearchConfig) -> None:
        self._index = SearchIndex(config.index)

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """The best passage for every query."""
        return [self._one(one.text) for one in inputs]

    def _one(self, query: str) -> ToolResult:
        if not query.strip():
            return ToolResult(reason="empty query")
        if len(query) > MAX_QUERY_CHARACTERS:
            return ToolResult(reason="query too long")
        hits = self._index.search(query, k=1)
        return (
            ToolResult(self._index.passage(hits[0].passage)) if hits else ToolResult(reason="nothing found")
        )
