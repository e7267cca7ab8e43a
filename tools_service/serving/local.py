"""Starts tools in this process, with everything that they need.

In: names of tools and a ToolsConfig. Out: a LocalTools client. What the tools read, an index
for example, is built if it is missing or out of date; that uses Ray only for a large source.
"""

from __future__ import annotations

from collections.abc import Iterable

from tools_service.config import ToolsConfig
from tools_service.tools.client import LocalTools
from tools_service.tools.registry import prepare_tools, require_available
from tools_service.tools.sanitize import CountTokens, count_words


def start_local_tools(
    config: ToolsConfig, tools: Iterable[str], count_tokens: CountTokens = count_words
) -> LocalTools:
    """Return a client of the named tools; ToolUnavailableError if one cannot be had."""
    tools = tuple(tools)
    require_available(tools, config)
    prepare_tools(config, tools)
    return LocalTools.start(config, tools, count_tokens)
