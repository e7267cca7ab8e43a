"""Which tools can be had, and what is said about the others."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from tests.tools_service.encyclopedia import indexed
from tools_service.base.errors import ConfigurationError
from tools_service.config import CalendarConfig, MTConfig, ToolsConfig, WikiSearchConfig
from tools_service.contract.declarations import PACKAGED
from tools_service.contract.settings import Deployment, ToolSettings
from tools_service.contract.spec import ToolSpec
from tools_service.contract.tool import ToolInput, ToolResult, ToolUnavailableError
from tools_service.tools.calculator import Calculator
from tools_service.tools.client import LocalTools
from tools_service.tools.registry import load_tool, require_available, tool_fingerprint

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
    with pytest.raises(ToolUnavailableError) as caught:
        require_available(["WikiSearch"], config, field="TOOL", can_be_left_out=False)
    assert "leave WikiSearch" not in str(caught.value)
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


@pytest.mark.parametrize(
    ("reference", "settings", "given", "result"),
    [
        ("convert", {}, "10 km", "6.2 miles"),
        ("Converter", {"digits": 3}, "10", "6.214"),
        ("OneByOne", {}, "10 km", "6.2 miles"),
    ],
)
def test_functions_and_classes_of_users_are_tools(
    reference: str, settings: dict[str, object], given: str, result: str
) -> None:
    implementation = f"tests.tools_service.own_tools:{reference}"
    spec = ToolSpec(name="Units", implementation=implementation, settings=settings)
    config = ToolsConfig(declared=(spec,))
    require_available(["Units"], config)
    tool = load_tool("Units", config)
    assert tool([ToolInput(given)]) == [ToolResult(result)]
    client = LocalTools.start(config, ["Units"])
    assert client.call("Units", [ToolInput(given, "2023-01-30")]) == [ToolResult(result)]


def test_a_class_that_is_missing_is_said_before_anything_starts() -> None:
    config = ToolsConfig(declared=(ToolSpec(name="Units", implementation="no_such_module:f"),))
    with pytest.raises(ConfigurationError, match="there is no module no_such_module"):
        require_available(["Units"], config)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(text): return text", "tools.Units: f: its parameter text has no type"),
        ("async def f(text: str): return text", "tools.Units: f: is async"),
        ("f = 5", "tools.Units: int: is a value, not a function"),
        ("class f: pass", "tools.Units: the class f has no __call__"),
        ("class f:\n  def __call__(self, text): return text", "its parameter text has no type"),
        (
            "import datetime\ndef f(text: str, date: datetime.date | None): return text",
            "declare dated = true",
        ),
    ],
)
def test_what_cannot_answer_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "unusable_tool", raising=False)
    importlib.invalidate_caches()
    (tmp_path / "unusable_tool.py").write_text(code)
    config = ToolsConfig(declared=(ToolSpec(name="Units", implementation="unusable_tool:f"),))
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        require_available(["Units"], config)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("NeedsMore", "tools.Units: NeedsMore cannot be created: TypeError: "),
        ("Exits", "tools.Units: Exits cannot be created: SystemExit: no key"),
    ],
)
def test_a_class_that_cannot_be_created_is_named(reference: str, message: str) -> None:
    spec = ToolSpec(name="Units", implementation=f"tests.tools_service.own_tools:{reference}")
    with pytest.raises(ConfigurationError, match=message):
        load_tool("Units", ToolsConfig(declared=(spec,)))


def test_a_function_that_needs_an_input_is_not_declared_without() -> None:
    spec = ToolSpec(name="U", implementation="tests.tools_service.own_tools:convert", takes_input=False)
    with pytest.raises(ConfigurationError, match="needs quantity; remove takes_input = false"):
        require_available(["U"], ToolsConfig(declared=(spec,)))


def test_the_fingerprint_of_a_tool_follows_its_code_settings_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = tmp_path / "fingerprinted_tool.py"
    code.write_text("def f(text: str) -> str:\n    return text\n")
    spec = ToolSpec(name="Units", implementation="fingerprinted_tool:f")
    config = ToolsConfig(declared=(spec,))
    before = tool_fingerprint(config, "Units")
    assert tool_fingerprint(config, "Units") == before
    other = config.model_copy(update={"units": ToolSettings(deployment=Deployment(cpus=2))})
    assert tool_fingerprint(other, "Units") != before
    code.write_text("def f(text: str) -> str:\n    return text.upper()\n")
    assert tool_fingerprint(config, "Units") != before
