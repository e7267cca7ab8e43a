"""Which tools can be had, and what is said about the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import MethodConfig, ToolsConfig
from tools_service.calculator import Calculator
from tools_service.contract import ToolInput
from tools_service.toolbox import AVAILABLE, ToolUnavailableError, load_tool, prepare, require_available

pytestmark = pytest.mark.unit


def test_tools_that_are_not_there_yet_are_refused_by_field_and_name() -> None:
    with pytest.raises(
        ToolUnavailableError, match=r"^method\.tools: QA and MT are not available yet; choose among"
    ):
        require_available(MethodConfig().tools, ToolsConfig(encyclopedia="wiki"))
    with pytest.raises(ToolUnavailableError, match=r"^--tools: MT is not available yet"):
        require_available(["MT", "Calculator"], ToolsConfig(), field="--tools")


def test_an_unknown_tool_is_refused() -> None:
    with pytest.raises(ToolUnavailableError, match=r"method\.tools: no tool is called Calc; there are QA, "):
        require_available(["Calc"], ToolsConfig())


def test_search_without_an_encyclopedia_is_refused_until_there_is_an_index(tmp_path: Path) -> None:
    config = ToolsConfig(index=tmp_path / "index")
    with pytest.raises(ToolUnavailableError, match=r"tools\.encyclopedia: WikiSearch .*nothing to search"):
        require_available(AVAILABLE, config)
    require_available(["Calculator", "Calendar"], config)

    (tmp_path / "wiki.jsonl").write_text('{"title": "Otter", "text": "An otter swims."}\n')
    prepare(AVAILABLE, config.model_copy(update={"encyclopedia": str(tmp_path / "wiki.jsonl")}))
    require_available(AVAILABLE, config)
    answers = load_tool("WikiSearch", config)([ToolInput("otters")])
    assert answers[0].result == "Otter > An otter swims."


def test_tools_are_made_from_the_configuration() -> None:
    assert isinstance(load_tool("Calculator", ToolsConfig()), Calculator)
    assert load_tool("Calendar", ToolsConfig())([ToolInput("")])[0].reason == "no date"
    today = load_tool("Calendar", ToolsConfig(calendar_today=True))([ToolInput("")])[0].result
    assert today is not None
    assert today.startswith("Today is ")
    with pytest.raises(ToolUnavailableError, match="QA is not available yet"):
        load_tool("QA", ToolsConfig())
