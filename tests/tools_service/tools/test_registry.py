"""Which tools can be had, and what is said about the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools_service.encyclopedia import indexed
from tools_service.config import CalendarConfig, MTConfig, ToolsConfig, WikiSearchConfig
from tools_service.contract.declarations import PACKAGED
from tools_service.contract.tool import ToolInput, ToolUnavailableError
from tools_service.tools.calculator import Calculator
from tools_service.tools.registry import load_tool, require_available

pytestmark = pytest.mark.unit


def test_a_model_that_can_only_be_a_folder_is_looked_for() -> None:
    def config(model: str) -> ToolsConfig:
        return ToolsConfig(mt=MTConfig(model=model))

    for model in ("nowhere/to/be/found", "./nowhere", "/nowhere"):
        with pytest.raises(ToolUnavailableError, match=rf"^tools\.mt\.model: {model} .*MT \(in --tools\)"):
            require_available(["MT", "Calculator"], config(model), field="--tools")
        require_available(["Calculator"], config(model))
    require_available(["MT"], config("facebook/nllb-200-distilled-600M"))


def test_an_unknown_tool_is_refused() -> None:
    with pytest.raises(
        ToolUnavailableError,
        match=r"method\.tools: no tool is called Calc; did you mean Calculator. there are QA, ",
    ):
        require_available(["Calc"], ToolsConfig())


def test_search_without_a_source_is_refused_until_there_is_an_index(tmp_path: Path) -> None:
    search = WikiSearchConfig(index=tmp_path / "index")
    config = ToolsConfig(wikisearch=search)
    with pytest.raises(
        ToolUnavailableError, match=r"tools\.wikisearch\.source: QA has nothing .*, or leave QA"
    ):
        require_available(PACKAGED, config)
    require_available(["Calculator", "Calendar"], config)

    indexed(tmp_path)
    require_available(PACKAGED, config)
    answers = load_tool("WikiSearch", config)([ToolInput("lighthouses")])
    assert (answers[0].result or "").startswith("Lighthouse > ")


def test_tools_are_made_from_the_configuration() -> None:
    assert isinstance(load_tool("Calculator", ToolsConfig()), Calculator)
    assert load_tool("Calendar", ToolsConfig())([ToolInput("")])[0].reason == "no date"
    today = load_tool("Calendar", ToolsConfig(calendar=CalendarConfig(today=True)))([ToolInput("")])[0].result
    assert today is not None
    assert today.startswith("Today is ")
