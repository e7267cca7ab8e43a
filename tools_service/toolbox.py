"""Which tools there are, and how each is made from the configuration (paper section 3).

`require_available` refuses what cannot be had before anything is started; `prepare` builds what tools need,
once, on the machine that starts them; `load_tool` makes a tool in the process that runs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from pathlib import Path

from pipeline.config import ToolsConfig
from pipeline.errors import ConfigurationError
from pipeline.records import TOOL_NAMES, ToolName
from tools_service.calculator import Calculator
from tools_service.calendar_ import Calendar
from tools_service.contract import Tool

AVAILABLE: tuple[ToolName, ...] = ("WikiSearch", "Calculator", "Calendar")


class ToolUnavailableError(ConfigurationError):
    """A tool was asked for that this version, or this configuration, cannot provide."""


def require_available(tools: Iterable[str], config: ToolsConfig, field: str = "method.tools") -> None:
    """ToolUnavailableError unless every one of `tools` can be had; `field` is the option that named them."""
    tools = tuple(tools)
    unknown = [tool for tool in tools if tool not in TOOL_NAMES]
    if unknown:
        raise ToolUnavailableError(
            f"{field}: no tool is called {_list(unknown)}; there are {_list(TOOL_NAMES)}"
        )
    missing = [tool for tool in tools if tool not in AVAILABLE]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise ToolUnavailableError(
            f"{field}: {_list(missing)} {are} not available yet; choose among {_list(AVAILABLE)}"
        )
    if "WikiSearch" in tools and config.encyclopedia is None and not _has_index(config.index):
        raise ToolUnavailableError(
            f"tools.encyclopedia: WikiSearch (in {field}) has nothing to search; name a folder or jsonl file "
            "of articles with title and text, or leave WikiSearch out"
        )


def prepare(tools: Iterable[str], config: ToolsConfig) -> None:
    """Build what `tools` need and is not there yet: WikiSearch's index."""
    if "WikiSearch" in tools and config.encyclopedia is not None:
        from tools_service.index import ensure

        ensure(config.encyclopedia, config.index)


def load_tool(name: ToolName, config: ToolsConfig) -> Tool:
    """The tool called `name`, ready to answer; `prepare` has run before, here or on another machine."""
    if name == "Calculator":
        return Calculator()
    if name == "Calendar":
        return Calendar(today=date.today if config.calendar_today else None)
    if name == "WikiSearch":
        from tools_service.search import WikiSearch

        return WikiSearch(config.index)
    raise ToolUnavailableError(f"method.tools: {name} is not available yet; choose among {_list(AVAILABLE)}")


def _has_index(folder: Path) -> bool:
    return (folder / "manifest.json").is_file()


def _list(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
