"""Tools in this process are started with their index, or refused before anything is built."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.tools_service.encyclopedia import written
from tools_service.config import ToolsConfig, WikiSearchConfig
from tools_service.contract.tool import UNREACHABLE, ToolInput, ToolResult, ToolUnavailableError
from tools_service.serving.local import prepare_tools, start_local_tools

pytestmark = pytest.mark.unit


def config(folder: Path) -> ToolsConfig:
    source = written(folder / "articles.jsonl")
    return ToolsConfig(wikisearch=WikiSearchConfig(source=(str(source),), index=folder / "index"))


def test_the_index_is_built_before_the_tools_are_loaded(tmp_path: Path) -> None:
    names: tuple[str, ...] = ("WikiSearch", "Calculator")
    tools = start_local_tools(config(tmp_path), names, count_tokens=lambda text: len(text.split()))
    assert (tools.call("WikiSearch", [ToolInput("ships")])[0].result or "").startswith("Lighthouse > ")
    assert tools.call("Calculator", [ToolInput("2 + 2")]) == [ToolResult("4")]
    assert tools.call("Calendar", [ToolInput("")]) == [ToolResult(reason=UNREACHABLE)]


def test_an_unavailable_tool_is_refused_before_an_index_is_built(tmp_path: Path) -> None:
    tools = config(tmp_path)
    broken = tools.model_copy(update={"mt": tools.mt.model_copy(update={"model": "./nowhere"})})
    with pytest.raises(ToolUnavailableError, match=r"tools\.mt\.model"):
        start_local_tools(broken, ["WikiSearch", "MT"])
    assert not (tmp_path / "index").exists()


def test_only_searching_tools_need_the_index(tmp_path: Path) -> None:
    prepare_tools(config(tmp_path), ["Calculator", "Calendar", "MT"])
    assert not (tmp_path / "index").exists()
    prepare_tools(config(tmp_path), ["QA"])
    assert (tmp_path / "index" / "manifest.json").is_file()
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()
