"""Parsing a call while the model writes it."""

from collections.abc import Collection

import pytest

from pipeline.syntax.partial_call import (
    PendingCall,
    callable_tools,
    names_disabled_tool,
    parse_partial_call,
)
from tools_service.contract.declarations import PACKAGED
from tools_service.contract.spec import ToolSpec
from tools_service.syntax.calls import Malformed

pytestmark = pytest.mark.unit

TOOLS = callable_tools()


def parse(written: str, tools_off: Collection[str] = ()) -> PendingCall | Malformed | None:
    return parse_partial_call(written, TOOLS, tools_off)


def names_disabled(written: str, tools_off: Collection[str]) -> bool:
    return names_disabled_tool(written, TOOLS, tools_off)


@pytest.mark.parametrize("tool", PACKAGED)
def test_every_call_is_undecided_up_to_its_arrow(tool: str) -> None:
    argument = "" if tool == "Calendar" else "3 - 1 > é"
    whole = f"{tool}({argument}) ->"
    assert [parse(whole[:end]) for end in range(len(whole))] == [None] * len(whole)
    assert parse(whole) == PendingCall(tool, argument)


@pytest.mark.parametrize("arrow", ["->", " ->", "  -> ", " -> 7] 7"])
def test_the_arrow_is_found_whatever_its_token_brings_along(arrow: str) -> None:
    assert parse(f"Calculator(3 + 4){arrow}") == PendingCall("Calculator", "3 + 4")


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("1]", "no_tool"),
        (" Calculator(", "no_tool"),
        ("Calculators", "no_tool"),
        ("->", "no_tool"),
        ("Calc ->", "no_tool"),
        ("Calendar()]", "no_arrow"),
        ("Calculator(3 + 4)] 7 ->", "no_arrow"),
        ("Calculator(3\n", "newline"),
        ("MT(a [b", "bracket"),
        ("MT(a -> b", "no_parenthesis"),
        ("Calculator(3 + 4 ->", "no_parenthesis"),
        ("Calendar(today", "input_not_empty"),
        ("Calculator() ->", "empty_input"),
        ("MT(\ufffda", "broken_character"),
    ],
)
def test_what_cannot_become_a_call_any_more_says_why(written: str, reason: str) -> None:
    verdict = parse(written)
    assert isinstance(verdict, Malformed)
    assert verdict.reason == reason or (reason, verdict.reason) == ("no_arrow", "arrow")


def test_a_character_may_come_in_several_tokens() -> None:
    assert parse("MT(caf\ufffd") is None
    assert parse("MT(café) ->") == PendingCall("MT", "café")


def test_a_tool_that_is_off_is_not_asked() -> None:
    assert parse("Calculator(3", {"Calculator"}) == Malformed("tool_off")
    assert parse("Calculator(3 + 4) ->", {"Calendar"}) == PendingCall("Calculator", "3 + 4")


@pytest.mark.parametrize(
    ("written", "leads_off"),
    [("", False), ("Ca", False), ("Cal", False), ("Calc", True), ("Calculator(3", True), ("Cale", False)],
)
def test_a_name_is_barred_where_it_parts_from_those_that_are_on(written: str, leads_off: bool) -> None:
    assert names_disabled(written, {"Calculator"}) is leads_off


def test_a_beginning_that_only_tools_switched_off_share_is_barred() -> None:
    assert names_disabled("C", {"Calculator", "Calendar"})
    assert not names_disabled("1", {"Calculator", "Calendar"})


def test_declared_tools_are_called_as_others_are() -> None:
    declared = [
        ToolSpec(name="Units", implementation="a:b"),
        ToolSpec(name="Cal", implementation="a:b"),  # the beginning of other names
        ToolSpec(name="Now", implementation="a:b", takes_input=False),
    ]
    tools = callable_tools(declared)
    assert list(tools)[-3:] == ["Units", "Cal", "Now"]
    for written, parsed in {
        "Units(5 km) ->": PendingCall("Units", "5 km"),
        "Cal(1) ->": PendingCall("Cal", "1"),
        "Calendar() ->": PendingCall("Calendar", ""),
        "Now() ->": PendingCall("Now", ""),
        "Now(x": Malformed("input_not_empty"),
        "Unit ->": Malformed("no_tool"),
        "Uni": None,
        "Cal": None,
    }.items():
        assert parse_partial_call(written, tools) == parsed, written
    assert parse_partial_call("Units(5", tools, ["Units"]) == Malformed("tool_off")
    assert parse_partial_call("Units(5", TOOLS) == Malformed("no_tool")
    assert not names_disabled_tool("Cal", tools, ["Cal"])
    assert names_disabled_tool("Cal(", tools, ["Cal"])
