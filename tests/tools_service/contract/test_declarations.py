"""Which tools there are: of this package, of entry points, of a file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.base.config import MethodConfig
from tools_service.config import CalendarConfig, ToolsConfig
from tools_service.contract import declarations
from tools_service.contract.builtin import BUILTIN
from tools_service.contract.declarations import (
    PACKAGED,
    DeclarationError,
    OpenSettings,
    import_object,
    in_order,
    installed_tools,
    known_tools,
    settings_class,
    settings_class_if_known,
    stream_number,
    with_installed,
)
from tools_service.contract.settings import ToolSettings
from tools_service.contract.spec import Select, ToolSpec

pytestmark = pytest.mark.unit


def spec(name: str = "Units", reference: str = "json:loads", **more: Any) -> ToolSpec:
    return ToolSpec(name=name, implementation=reference, **more)


@dataclass
class Point:
    """An entry point of an installed package."""

    name: str
    loaded: object
    value: str = "package:object"

    def load(self) -> object:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, ToolSpec]]]:
    """Sets the entry points; returns the installed tools."""

    def install(*points: Point) -> dict[str, ToolSpec]:
        monkeypatch.setattr(declarations, "entry_points", lambda group: points if group else ())
        installed_tools.cache_clear()
        return installed_tools()

    yield install
    installed_tools.cache_clear()


def test_the_tools_of_the_paper_are_declared_as_others_are() -> None:
    assert PACKAGED == ("QA", "WikiSearch", "Calculator", "Calendar", "MT")
    assert list(known_tools()) == list(PACKAGED)
    assert [spec.section for spec in BUILTIN] == ["qa", "wikisearch", "calculator", "calendar", "mt"]


def test_entry_points_bring_tools_one_or_several(installed: Callable[..., dict[str, ToolSpec]]) -> None:
    tools = installed(Point("b", [spec("Beta"), spec("Gamma")]), Point("a", spec("Alpha")))
    assert list(tools) == [*PACKAGED, "Alpha", "Beta", "Gamma"]


@pytest.mark.parametrize(
    "loaded",
    [ImportError("no such package"), "units", 3, [spec("Fine"), None], spec("QA"), spec("Qa"), spec("MT")],
)
def test_an_entry_point_that_cannot_be_used_costs_a_warning(
    loaded: object, installed: Callable[..., dict[str, ToolSpec]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        tools = installed(Point("a", loaded), Point("b", spec("Beta")))
    assert list(tools) == [*PACKAGED, "Beta"]
    assert "entry point a = package:object is left out: " in caplog.text


def test_a_declared_tool_replaces_one_of_its_name_and_no_other() -> None:
    own = spec("Calculator", tau_f=3.0)
    tools = known_tools([own, spec("Units")])
    assert list(tools) == [*PACKAGED, "Units"]
    assert tools["Calculator"] is own
    for name in ("calculator", "QA_", "units"):
        if name == "QA_":
            assert list(known_tools([spec(name)])) == [*PACKAGED, name]
        else:
            with pytest.raises(DeclarationError, match="there is a tool"):
                known_tools([spec(name), spec("Units")])


def test_a_name_alone_gives_the_stream_and_the_order() -> None:
    assert [stream_number(tool) for tool in PACKAGED] == [0, 1, 2, 3, 4]
    numbers = [stream_number(f"Tool{n}") for n in range(2_000)]
    assert len({*numbers, *range(5)}) == 2_005
    assert min(numbers) >= 2**62
    assert stream_number("Units") == 7_531_110_071_076_025_984  # in this process as in any other
    assert in_order(["Zeta", "MT", "Alpha", "QA"]) == ["QA", "MT", "Alpha", "Zeta"]
    assert with_installed(["Units", "MT"]) == (*PACKAGED, "Units")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("no_such_module:f", "tools.Units.class = 'no_such_module:f': there is no module no_such_module; "),
        ("json.no_such:f", "there is no module json.no_such"),
        ("json:no_such", "has no attribute 'no_such'"),
        ("json:loads.nothing", "has no attribute 'nothing'"),
        ("broken_module:f", "importing broken_module failed: ZeroDivisionError: "),
        ("wrong_syntax:f", "importing wrong_syntax failed: SyntaxError: "),
        ("module_that_exits:f", "importing module_that_exits failed: SystemExit: 0"),
    ],
)
def test_what_cannot_be_imported_is_named(
    reference: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    (tmp_path / "wrong_syntax.py").write_text("def f(:\n")
    (tmp_path / "module_that_exits.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(DeclarationError) as refused:
        import_object(reference, "tools.Units.class")
    assert said in str(refused.value)


def test_a_module_of_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_units_of_a_test.py").write_text("class Outer:\n    value = 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert import_object("my_units_of_a_test:Outer.value", "class") == 7


def test_settings_are_those_of_the_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings_of_a_test.py").write_text(
        "from tools_service.contract.settings import ToolSettings\n"
        "class Mine(ToolSettings):\n    digits: int = 2\n"
        "class Units:\n    Config = Mine\n"
        "class Wrong:\n    Config = dict\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert settings_class(spec(reference="settings_of_a_test:Units")).__name__ == "Mine"
    assert settings_class(spec(config="settings_of_a_test:Mine")).__name__ == "Mine"
    assert settings_class(spec()) is ToolSettings
    with pytest.raises(DeclarationError, match="must derive from"):
        settings_class(spec(reference="settings_of_a_test:Wrong"))
    own = ToolsConfig(declared=(spec(reference="settings_of_a_test:Units", settings={"digits": 5}),))
    assert own.of("Units").model_dump()["digits"] == 5
    with pytest.raises(ValidationError, match=r"units\.digits"):
        ToolsConfig(declared=own.declared, units={"digits": "x"})


def test_a_stored_run_is_read_where_the_class_is_missing() -> None:
    """Merge and report need no class of a tool."""
    absent = spec(reference="no_such_module:Units")
    assert settings_class_if_known(absent) is OpenSettings
    stored = ToolsConfig(declared=(absent,), units={"digits": 5}).model_dump_json()
    read = ToolsConfig.model_validate_json(stored)
    assert read.of("Units").model_dump()["digits"] == 5
    assert read.spec("Units") == absent


def test_sections_keep_their_class_through_json() -> None:
    config = ToolsConfig(calendar=CalendarConfig(today=True))
    read = ToolsConfig.model_validate_json(config.model_dump_json())
    assert read == config
    assert isinstance(read.of("Calendar"), CalendarConfig)
    assert config.at_inference() == config
    assert ToolsConfig().at_inference() == config


@pytest.mark.parametrize("name", ["", "9a", "a b", "a-b", "a(b", "é", "A" * 41, "a\n"])
def test_a_name_is_a_letter_then_letters_digits_and_underscores(name: str) -> None:
    with pytest.raises(ValidationError, match="must be a letter, then letters, digits and underscores"):
        spec(name)


def test_a_name_that_configurations_have_already_is_refused() -> None:
    taken = {name for model in (ToolsConfig, MethodConfig) for name in (*dir(model), *model.model_fields)}
    for name in sorted(name for name in taken if name[0].isalpha() and name.islower()):
        with pytest.raises(ValidationError, match=f"configurations have a field {name.lower()} already"):
            spec(name.capitalize())


@pytest.mark.parametrize(
    ("given", "rule", "pattern"),
    [
        ("all", "all", None),
        ("dated", "dated", None),
        ("mylab.rules:has_units", "mylab.rules:has_units", None),
        ({"pattern": r"\d+ km"}, "pattern", r"\d+ km"),
        ({"rule": "a:b", "random_share": 0.5}, "a:b", None),
    ],
)
def test_the_forms_of_a_selection(given: object, rule: str, pattern: str | None) -> None:
    select = Select.model_validate(given)
    assert (select.rule, select.pattern) == (rule, pattern)


@pytest.mark.parametrize(
    "given",
    [
        "some",
        "a.b",
        "",
        3,
        {"pattern": "("},
        {"rule": "pattern"},
        {"rule": "all", "pattern": "x"},
        {"patern": "x"},
    ],
)
def test_a_wrong_selection_is_refused(given: object) -> None:
    with pytest.raises(ValidationError):
        Select.model_validate(given)
