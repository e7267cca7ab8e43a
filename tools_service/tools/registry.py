"""Which tools there are, and how each is created from the configuration (paper section 3).

In: names of tools and a ToolsConfig. Out: tools that are ready to answer, errors for tools that
cannot be had, and a fingerprint of all that a tool is made from. It builds no index.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tools_service.base.errors import ConfigurationError
from tools_service.base.fingerprint import fingerprint, folder_states
from tools_service.base.model_folder import may_be_hub_name
from tools_service.base.version import __version__
from tools_service.config import ToolsConfig
from tools_service.contract.tool import TOOL_NAMES, Tool
from tools_service.retrieval.index import MANIFEST, read_manifest, require_whole
from tools_service.tools.calculator import Calculator
from tools_service.tools.calendar import Calendar

SEARCHING_TOOLS = frozenset({"WikiSearch", "QA"})  # the tools that search an index


class ToolUnavailableError(ConfigurationError):
    """This version, or this configuration, cannot provide a tool."""


def require_available(tools: Iterable[str], config: ToolsConfig, field: str = "method.tools") -> None:
    """Raise ToolUnavailableError unless all `tools` can be had; the option `field` named them."""
    tools = tuple(tools)
    unknown = [tool for tool in tools if tool not in TOOL_NAMES]
    if unknown:
        raise ToolUnavailableError(
            f"{field}: no tool is called {_join(unknown)}; there are {_join(TOOL_NAMES)}"
        )
    searching = [tool for tool in tools if tool in SEARCHING_TOOLS]
    if searching and not config.wikisearch.source and not (config.wikisearch.index / MANIFEST).is_file():
        has, it = ("has", "it") if len(searching) == 1 else ("have", "them")
        raise ToolUnavailableError(
            f"tools.wikisearch.source: {_join(searching)} (in {field}) {has} nothing to search; name a "
            f"folder or jsonl file of articles with title and text, or leave {it} out"
        )
    if searching and not config.wikisearch.source:
        require_whole(config.wikisearch.index, read_manifest(config.wikisearch.index))
    for tool, section in (("QA", config.qa), ("MT", config.mt)):
        if (
            tool in tools
            and not may_be_hub_name(section.model)
            and not Path(section.model, "config.json").is_file()
        ):
            raise ToolUnavailableError(
                f"tools.{tool.lower()}.model: {section.model} is not a folder with a model; name one, or "
                f"a model of the hub (owner/name), or leave {tool} (in {field}) out"
            )


def load_tool(name: str, config: ToolsConfig) -> Tool:
    """Return the tool called `name`. The index of a searching tool must have been built before."""
    if name == "Calculator":
        return Calculator()
    if name == "Calendar":
        return Calendar(config.calendar)
    # Imported here: each brings libraries that the replicas of other tools do not need.
    if name == "WikiSearch":
        from tools_service.tools.wikisearch import WikiSearch

        return WikiSearch(config.wikisearch)
    if name == "QA":
        from tools_service.tools.qa import QA

        return QA(config.qa, config.wikisearch)
    if name == "MT":
        from tools_service.tools.mt import MT

        return MT(config.mt)
    raise ToolUnavailableError(f"no tool is called {name}; there are {_join(TOOL_NAMES)}")


def with_absolute_paths(config: ToolsConfig) -> ToolsConfig:
    """Return `config` with absolute folders: replicas have a working folder of their own."""
    search = config.wikisearch
    encoder = search.encoder.model_copy(update={"model": _absolute(search.encoder.model)})
    return config.model_copy(
        update={
            "wikisearch": search.model_copy(update={"index": search.index.resolve(), "encoder": encoder}),
            "qa": config.qa.model_copy(update={"model": _absolute(config.qa.model)}),
            "mt": config.mt.model_copy(update={"model": _absolute(config.mt.model)}),
        }
    )


def tool_fingerprint(config: ToolsConfig, tool: str) -> str:
    """Return a hex digest of what replicas of `tool` are made from: settings, version, files."""
    config = with_absolute_paths(config)
    parts: list[object] = [__version__, config.of(tool).model_dump_json()]
    if tool in SEARCHING_TOOLS:
        search = config.wikisearch
        parts += [search.model_dump_json(exclude={"deployment"}), folder_states(search.index)]
    if tool in ("QA", "MT"):
        parts.append(folder_states(Path((config.qa if tool == "QA" else config.mt).model)))
    return fingerprint(parts)


def _absolute(model: str) -> str:
    return model if may_be_hub_name(model) else str(Path(model).expanduser().resolve())


def _join(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
