"""Functions as tools: arguments in, text out, and a reason for all that goes wrong."""

from __future__ import annotations

import datetime
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tools_service.contract.functions import (
    FunctionError,
    FunctionTool,
    NoResult,
    ResultTypeError,
    as_text,
    tool_of_function,
)
from tools_service.contract.parameters import ParametersError
from tools_service.contract.spec import ToolSpec
from tools_service.contract.tool import TRANSIENT, ToolInput, ToolResult

pytestmark = pytest.mark.unit


class Unit(Enum):
    KM = "km"
    FT = "ft"


FACTORS = {Unit.KM: 1.609344, Unit.FT: 5280.0}


def convert(amount: float, to: Unit) -> float:
    """Convert miles to another unit."""
    return amount * FACTORS[to]


def ask(tool: FunctionTool, *texts: str, date: str | None = None) -> list[str]:
    """Results, or reasons with a question mark."""
    answers = tool([ToolInput(text, date) for text in texts])
    return [f"? {one.reason}" if one.result is None else one.result for one in answers]


def test_several_parameters_come_from_the_string_of_the_call() -> None:
    tool = FunctionTool(convert, "Miles")
    assert tool.name == "Miles"
    assert ask(tool, "5, km", "1, ft", "five, km", "5, m", "5", "5, km, 7") == [
        "8.04672",
        "5280",
        "? not a number: amount",
        "? not one of the choices: to",
        "? missing argument: to",
        "? too many arguments",
    ]
    named = FunctionTool(convert, style="named")
    assert named.name == "convert"
    assert ask(named, "to=km, amount=5", "5, km") == ["8.04672", "? not key=value"]


def test_one_string_gets_the_whole_input() -> None:
    def shout(text: str) -> str:
        return text.upper()

    assert ask(FunctionTool(shout), "a, b=c", '"q"') == ["A, B=C", '"Q"']


def test_values_have_the_types_of_the_signature() -> None:
    seen: list[object] = []

    def look(day: datetime.date, unit: Unit, amount: Decimal, tags: list[Unit] = [], rate: float = 1) -> str:  # noqa: B006
        seen.extend([day, unit, amount, tags, rate])
        return "seen"

    tool = FunctionTool(look)
    assert ask(tool, "2020-02-29, km, 2.50, (ft, km)") == ["seen"]
    assert seen == [datetime.date(2020, 2, 29), Unit.KM, Decimal("2.5"), [Unit.FT, Unit.KM], 1]
    assert ask(tool, "2021-02-29, km, 1", "soon, km, 1", "2021-02-28, km, one") == [
        "? wrong value: day",
        "? wrong value: day",
        "? wrong value: amount",
    ]


def test_positional_only_parameters_and_defaults() -> None:
    def join(first: str, second: str = "b", third: str = "c", /, *, last: str = "d") -> str:
        return first + second + third + last

    assert ask(FunctionTool(join), "x", "x, y", "x, , z", "x, , , w") == ["xbcd", "xycd", "xbzd", "xbcw"]


def test_no_parameters_no_input() -> None:
    def dice() -> int:
        return 4

    assert ask(FunctionTool(dice), "", " ", "6") == ["4", "4", "? too many arguments"]


def test_the_date_of_the_text_is_no_part_of_the_call() -> None:
    def age(year: int, date: datetime.date | None = None) -> int | None:
        return date.year - year if date else None

    tool = FunctionTool(age)
    assert ask(tool, "1990", date="2023-01-30") == ["33"]
    assert ask(tool, "1990") == ["? no result"]
    assert ask(tool, "1990", date="yesterday") == ["? malformed date"]
    assert ask(tool, "1990, 2023-01-30", date="2023-01-30") == ["? not a whole number: year"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is\n", "as it is\n"),
        (True, "true"),
        (35, "35"),
        (-(10**30), "-" + "1" + "0" * 30),
        (35.0, "35"),
        (-0.0, "0"),
        (8.04672, "8.04672"),
        (0.1 + 0.2, "0.3"),
        (2 / 3, "0.666667"),
        (1234567.891, "1234567.89"),
        (99999.5, "99999.5"),
        (0.000123456789, "0.000123457"),
        (2.9999999, "3"),
        (1e14, "100000000000000"),
        (1.5e-9, "1.5e-09"),
        (1e20, "1e+20"),
        (Decimal("2.50"), "2.50"),
        (Decimal("1E+3"), "1000"),
        (Decimal("1E+999999"), "1E+999999"),
        (Fraction(1, 3), "0.333333"),
        (np.float32(0.5), "0.5"),
        (np.int64(7), "7"),
        (Unit.KM, "km"),
        (IntEnum("Level", ["LOW"])(1), "1"),
        (datetime.date(2023, 1, 30), "2023-01-30"),
        (datetime.datetime(2023, 1, 30, 12, 5, 6, 7), "2023-01-30 12:05:06"),
        (datetime.time(12, 5), "12:05:00"),
    ],
)
def test_results_become_text(value: Any, text: str) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize(
    "value", [[1], ("a",), {"a": 1}, b"bytes", object(), 1j, np.array([1.0]), Exception()]
)
def test_other_results_are_malformed(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    def function(text: str) -> Any:
        return value

    with pytest.raises(ResultTypeError, match="return a str or a number"):
        as_text(value)
    assert ask(FunctionTool(function), "x") == ["? malformed answer"]
    assert "return a str" in caplog.text


def raising(error: BaseException) -> Callable[[str], str]:
    def function(text: str) -> str:
        raise error

    return function


def deep(text: str) -> str:
    return deep(text)


def huge(text: str) -> int:
    return 10**5000


def out_of_range(text: str) -> float:
    return float("nan")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (raising(NoResult("unknown unit")), "unknown unit"),
        (raising(NoResult()), "no result"),
        (raising(NoResult("line\nline\x1b[31m")), r"line\nline\x1b[31m"),
        (raising(ValueError("could not convert 'abc'")), "wrong input"),
        (raising(json.JSONDecodeError("bad", "x", 0)), "tool failed"),
        (raising(UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")), "tool failed"),
        (raising(KeyError("furlong")), "tool failed"),
        (raising(ZeroDivisionError()), "tool failed"),
        (raising(TimeoutError()), "tool failed"),
        (raising(StopIteration()), "tool failed"),
        (raising(SystemExit(2)), "tool failed"),
        (deep, "tool failed"),
        (huge, "malformed answer"),
        (out_of_range, "no finite number"),
    ],
)
def test_failures_become_reasons(function: Callable[[str], Any], reason: str) -> None:
    assert ask(FunctionTool(function), "x") == [f"? {reason}"]


def test_a_long_reason_is_cut() -> None:
    [answer] = FunctionTool(raising(NoResult("x" * 10_000)))([ToolInput("x")])
    assert answer.reason is not None
    assert len(answer.reason) < 120


def test_only_failures_of_the_moment_are_transient() -> None:
    assert "tool failed" in TRANSIENT
    assert not TRANSIENT & {"wrong input", "no result", "no finite number", "malformed date"}


def test_one_failure_costs_its_neighbours_nothing(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    def count(text: str) -> int:
        calls.append(text)
        return {"a": 1, "c": 3}[text]

    with caplog.at_level(logging.WARNING):
        assert ask(FunctionTool(count), "a", "b", "c") == ["1", "? tool failed", "3"]
    assert calls == ["a", "b", "c"]
    assert "count failed on 'b': KeyError" in caplog.text


def test_an_interrupt_is_not_an_answer() -> None:
    with pytest.raises(KeyboardInterrupt):
        FunctionTool(raising(KeyboardInterrupt()))([ToolInput("x")])


def test_no_calls_no_answers() -> None:
    assert FunctionTool(convert)([]) == []


def test_a_result_of_one_call_is_the_contracts() -> None:
    assert FunctionTool(convert)([ToolInput("5, km")]) == [ToolResult("8.04672")]


def declared(**fields: Any) -> ToolSpec:
    return ToolSpec(name="Tool", implementation="mylab.tools:f", **fields)


def test_a_declaration_gives_name_style_and_schema() -> None:
    schema = {
        "properties": {"to": {"enum": ["km"]}, "amount": {"type": "number", "maximum": 10}},
        "required": ["to", "amount"],
    }
    tool = tool_of_function(declared(arguments="positional", parameters=schema), convert)
    assert tool.name == "Tool"
    assert [one.reason for one in tool([ToolInput("km, 5"), ToolInput("ft, 5"), ToolInput("km, 11")])] == [
        None,
        "not one of the choices: to",
        "out of range: amount",
    ]


def with_date(text: str, date: datetime.date | None) -> str:
    return str(date)


def nothing() -> str:
    return "4"


@pytest.mark.parametrize(
    ("fields", "function", "message"),
    [
        ({}, lambda x: x, "tools.Tool: <lambda>: its parameter x has no type"),
        ({"arguments": "text"}, convert, 'tools.Tool: arguments = "text" needs a tool with one parameter'),
        ({"parameters": {"type": "string"}}, convert, "tools.Tool: parameters: wanted a JSON schema"),
        (
            {"parameters": {"properties": {"size": {}}}},
            convert,
            "tools.Tool: Tool: the function has no parameter size",
        ),
        ({"parameters": {"properties": {"to": {}}}}, convert, "parameters lacks amount"),
        (
            {"dated": True},
            convert,
            "the function has no parameter date: datetime.date | None; declare dated = false",
        ),
        ({}, with_date, "the function has a parameter date: datetime.date | None; declare dated = true"),
        ({}, nothing, "the function has no parameters; declare takes_input = false"),
    ],
)
def test_a_declaration_that_does_not_fit_its_function_is_refused(
    fields: dict[str, Any], function: Callable[..., Any], message: str
) -> None:
    with pytest.raises(ParametersError) as refused:
        tool_of_function(declared(**fields), function)
    assert message in str(refused.value)
    assert isinstance(refused.value, FunctionError)


def test_declarations_that_fit() -> None:
    assert tool_of_function(declared(dated=True), with_date)([ToolInput("x", "2020-01-02")]) == [
        ToolResult("2020-01-02")
    ]
    assert tool_of_function(declared(takes_input=False), nothing)([ToolInput("")]) == [ToolResult("4")]


def test_functions_need_no_model_libraries() -> None:
    heavy = "{'ray', 'torch', 'transformers'} & set(sys.modules)"
    code = f"import sys, tools_service.contract.functions; print({heavy})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
