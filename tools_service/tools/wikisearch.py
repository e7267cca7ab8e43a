"""Wikipedia search (paper section 3): ``WikiSearch(term)`` answers ``Title > text``.

In: a query. Out: the best passage of an index (indexing/build.py), by BM25, by vectors or by both.
A query without a word, or without a hit, has no result. Results are not shortened here: the client
caps them in tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tools_service.config import ToolsConfig, WikiSearchConfig
from tools_service.contract.declarations import import_object
from tools_service.contract.spec import ToolSpec
from tools_service.contract.tool import ToolInput, ToolResult, ToolUnavailableError
from tools_service.retrieval.index import MANIFEST, read_manifest, require_whole
from tools_service.retrieval.passages import Hit
from tools_service.retrieval.retriever import Retriever

MAX_QUERY_CHARACTERS = 1_000

_WORD = re.compile(r"[^\W_]")


class WikiSearch:
    """`WikiSearch(term)`: a list of queries to a list of snippets or reasons."""

    name = "WikiSearch"
    Config = WikiSearchConfig

    @staticmethod
    def check(spec: ToolSpec, settings: WikiSearchConfig, _tools: ToolsConfig) -> None:
        """Raise ToolUnavailableError if there is nothing to search."""
        require_searchable(spec.name, spec.section, settings)

    @staticmethod
    def prepare(settings: WikiSearchConfig) -> None:
        """Build or update the index."""
        if settings.source:
            # By name: building may use Ray, which no tool knows.
            import_object("tools_service.indexing.build:ensure_index", "prepare")(settings)

    @staticmethod
    def reads(settings: WikiSearchConfig) -> list[str | Path]:
        """The articles; the index where they are not named."""
        return [*settings.source] or [settings.index]

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


def require_searchable(tool: str, section: str, settings: WikiSearchConfig) -> None:
    """Raise ToolUnavailableError if `tool` has nothing to search; `section` is that of `settings`."""
    if settings.source:
        return
    if not isinstance(settings.index, Path):
        from tools_service.retrieval.local_copy import StoredIndex  # imports pyarrow

        StoredIndex.at(settings.index).manifest()
        return
    if not (settings.index / MANIFEST).is_file():
        raise ToolUnavailableError(
            f"tools.{section}.source: {tool} has nothing to search; name a folder or jsonl file of articles "
            "with title and text"
        )
    require_whole(settings.index, read_manifest(settings.index))


def _refusal(query: str) -> str | None:
    """Return the reason why `query` is not searched for; None if it is."""
    if len(query) > MAX_QUERY_CHARACTERS:
        return "query too long"
    if not query.strip():
        return "empty query"
    return None if _WORD.search(query) else "no word to search for"
