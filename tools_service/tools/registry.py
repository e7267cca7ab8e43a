"""Which tools there are, and how each is made from the configuration (paper section 3).

`require_available` refuses what cannot be had before anything is started; `prepare` builds what tools need,
once, on the machine that starts them; `load_tool` makes a tool in the process that runs it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from tools_service.base.errors import ConfigurationError
from tools_service.base.version import __version__
from tools_service.config import ToolsConfig
from tools_service.tools.calculator import Calculator
from tools_service.tools.calendar import Calendar
from tools_service.tools.contract import TOOL_NAMES, Tool

_SEARCHING = frozenset({"WikiSearch", "QA"})


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
    searching = [tool for tool in tools if tool in _SEARCHING]
    if searching and not config.wikisearch.source and not _has_index(config.wikisearch.index):
        has, out = ("has", "it") if len(searching) == 1 else ("have", "them")
        raise ToolUnavailableError(
            f"tools.wikisearch.source: {_list(searching)} (in {field}) {has} nothing to search; name a "
            f"folder or jsonl file of articles with title and text, or leave {out} out"
        )
    for tool, section in (("QA", config.qa), ("MT", config.mt)):
        if tool in tools and _is_folder(section.model) and not Path(section.model, "config.json").is_file():
            raise ToolUnavailableError(
                f"tools.{tool.lower()}.model: {section.model} is not a folder with a model; name one, or "
                f"a model of the hub (owner/name), or leave {tool} (in {field}) out"
            )


def prepare(tools: Iterable[str], config: ToolsConfig) -> None:
    """Build what `tools` need and is not there yet: the index of WikiSearch and QA."""
    if config.wikisearch.source and not _SEARCHING.isdisjoint(tools):
        from tools_service.retrieval.index import ensure

        ensure(config.wikisearch)


def load_tool(name: str, config: ToolsConfig) -> Tool:
    """The tool called `name`, ready to answer; `prepare` has run before, here or on another machine."""
    if name == "Calculator":
        return Calculator()
    if name == "Calendar":
        return Calendar(config.calendar)
    if name == "WikiSearch":
        from tools_service.tools.wikisearch import WikiSearch

        return WikiSearch(config.wikisearch)
    if name == "QA":
        from tools_service.tools.qa import QA

        return QA(config.qa, config.wikisearch)
    if name == "MT":
        from tools_service.tools.mt import MT

        return MT(config.mt)
    raise ToolUnavailableError(f"no tool is called {name}; there are {_list(TOOL_NAMES)}")


def absolute(config: ToolsConfig) -> ToolsConfig:
    """`config` with its folders named in full: replicas have a working folder of their own."""
    search = config.wikisearch
    encoder = search.encoder.model_copy(update={"model": _resolved(search.encoder.model)})
    return config.model_copy(
        update={
            "wikisearch": search.model_copy(update={"index": search.index.resolve(), "encoder": encoder}),
            "qa": config.qa.model_copy(update={"model": _resolved(config.qa.model)}),
            "mt": config.mt.model_copy(update={"model": _resolved(config.mt.model)}),
        }
    )


def fingerprint(config: ToolsConfig, tool: str) -> str:
    """Everything that the replicas of `tool` are made from, as one text: equal texts, equal replicas.

    Settings, this package's version, and the state of the folders that are read: a model trained again in the
    same place is another one.
    """
    config = absolute(config)
    parts: list[object] = [__version__, config.of(tool).model_dump_json()]
    if tool in _SEARCHING:
        search = config.wikisearch
        parts += [search.model_dump_json(exclude={"deployment"}), _state(search.index)]
    if tool in ("QA", "MT"):
        parts.append(_state(Path((config.qa if tool == "QA" else config.mt).model)))
    return json.dumps(parts)


def _state(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of every file in `folder`, without its subfolders; nothing where there is none."""
    files = sorted(file for file in folder.glob("*") if file.is_file())
    return [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]


def _resolved(model: str) -> str:
    return str(Path(model).expanduser().resolve()) if _is_folder(model) else model


def _is_folder(model: str) -> bool:
    """Whether `model` can only be a folder: the hub's are called NAME or OWNER/NAME."""
    return Path(model).is_dir() or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", model)


def _has_index(folder: Path) -> bool:
    return (folder / "manifest.json").is_file()


def _list(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
