"""Writing, parsing, inserting and removing calls."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.records import Call
from tools_service.contract.declarations import PACKAGED
from tools_service.syntax.calls import (
    CallError,
    Malformed,
    has_call_syntax,
    insert_calls,
    linearise,
    parse_call,
    remove_calls,
    split_calls,
    split_result,
    without_result,
)

pytestmark = pytest.mark.unit


def placed(tool: str, position: int, argument: str, result: str) -> Call:
    return Call(tool, position, 0.5, argument, result, 0.0, 1.0, 1.0, 1.0)


def test_a_call_is_written_as_the_paper_writes_it() -> None:
    assert linearise("Calculator", "27 + 4") == " [Calculator(27 + 4)]"
    assert linearise("Calculator", "27 + 4", "31") == " [Calculator(27 + 4) -> 31]"
    assert linearise("Calendar", "", "Today is Monday.") == " [Calendar() -> Today is Monday.]"


@pytest.mark.parametrize(
    ("argument", "result"),
    [("a]", None), ("[a", None), ("a\nb", None), ("a -> b", None), ("a->b", "c"), ("a", "[b"), ("a", "b\r")],
)
def test_what_would_break_the_syntax_is_not_written(argument: str, result: str | None) -> None:
    with pytest.raises(CallError, match="QA"):
        linearise("QA", argument, result)


@pytest.mark.parametrize(
    ("drawn", "read"),
    [
        ("Calculator(1 + 2)]", "1 + 2"),
        ("Calculator( 1 + 2 )] and on, [Calculator(3)]", "1 + 2"),
        ("Calculator((1 + 2) * 3)].", "(1 + 2) * 3"),
        ("Calculator(1 + 2) -> 3]", Malformed("arrow")),
        ("Calculator(1 -> 2)]", Malformed("arrow")),
        ("Calculator 1 + 2]", Malformed("wrong_tool")),
        ("calculator(1)]", Malformed("wrong_tool")),
        ("QA(1 + 2)]", Malformed("wrong_tool")),
        ("]", Malformed("wrong_tool")),
        ("Calculator(1 + 2]", Malformed("no_parenthesis")),
        ("Calculator(]", Malformed("no_parenthesis")),
        ("Calculator()]", Malformed("empty_input")),
        ("Calculator(  )]", Malformed("empty_input")),
        ("Calculator(1\n)]", Malformed("newline")),
        ("Calculator(1\x0b)]", Malformed("control_character")),
        ("Calculator(1 [2)]", Malformed("bracket")),
        ("Calculator(1\ufffd)]", Malformed("broken_character")),
        ("Calculator(1 + 2", Malformed("too_long")),
        ("Calcul", Malformed("too_long")),
        ("", Malformed("too_long")),
        ("Calx", Malformed("wrong_tool")),
    ],
)
def test_a_draw_is_a_call_or_says_why_not(drawn: str, read: str | Malformed) -> None:
    assert parse_call(drawn, "Calculator") == read


@pytest.mark.parametrize(
    ("drawn", "read"),
    [
        ("QA(who?) -> me]", "QA(who?)]"),
        ("QA(who?) ->", "QA(who?)]"),
        ("QA(who?)->x -> y", "QA(who?)]"),
        ("QA(who?)] -> me", "QA(who?)] -> me"),
        ("QA(who?)", "QA(who?)"),
        ("QA(a -> b) -> me]", "QA(a]"),
    ],
)
def test_a_result_is_cut_off(drawn: str, read: str) -> None:
    assert without_result(drawn) == read


def test_the_calendar_takes_no_input_and_the_others_need_one() -> None:
    assert parse_call("Calendar()]", "Calendar", takes_input=False) == ""
    assert parse_call("Calendar(today)]", "Calendar", takes_input=False) == Malformed("input_not_empty")
    assert parse_call("Calendar(tod", "Calendar", takes_input=False) == Malformed("input_not_empty")
    assert parse_call("MT()]", "MT") == Malformed("empty_input")


def test_calls_go_in_front_of_the_leading_space_and_behind_nothing() -> None:
    text = "Out of 20, 5 left."
    calls = [placed("Calculator", 10, "20 / 4", "5"), placed("Calendar", 0, "", "Monday")]
    assert insert_calls(text, calls) == "[Calendar() -> Monday] Out of 20, [Calculator(20 / 4) -> 5] 5 left."
    assert insert_calls(text, [placed("QA", 18, "x", "y")]) == "Out of 20, 5 left. [QA(x) -> y]"
    assert insert_calls("", [placed("QA", 0, "x", "y")]) == "[QA(x) -> y] "


PLAIN = st.text(
    st.characters(exclude_characters="[]", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12
)
PARTS = [*"ab é中\n[]()", " [", "[Calculator(1) -> 2]", " [QA(x)]", "->"]
ANY = st.lists(st.sampled_from(PARTS), max_size=8).map("".join)


@st.composite
def texts_with_calls(draw: st.DrawFn, text: st.SearchStrategy[str]) -> tuple[str, list[Call]]:
    x = draw(text)
    place = st.one_of(st.integers(0, len(x)), st.just(0), st.just(len(x)))
    argument = PLAIN.filter(lambda part: "->" not in part)
    call = st.builds(placed, st.sampled_from(PACKAGED), place, argument, PLAIN)
    return x, draw(st.lists(call, max_size=5))


@settings(max_examples=60, deadline=None)
@given(texts_with_calls(ANY))
def test_removing_what_was_inserted_gives_the_text_back_even_if_it_looks_like_calls(
    case: tuple[str, list[Call]],
) -> None:
    text, calls = case
    assert remove_calls(insert_calls(text, calls), calls) == text


@settings(max_examples=60, deadline=None)
@given(texts_with_calls(PLAIN))
def test_splitting_finds_the_calls_of_texts_that_contain_none(
    case: tuple[str, list[Call]],
) -> None:
    text, calls = case
    parts = split_calls(insert_calls(text, calls))
    assert "".join(part for part in parts if "[" not in part) == " " + text
    assert len(parts) - len([part for part in parts if "[" not in part]) == len(calls)


WITH_SYNTAX = [
    "It is [QA(who?) -> she] so.",
    "[Calculator(1 + 1) -> 2] two",
    " [Calculator(1 + 1)]",
    "[Calendar()] today",
    "open [MT(hola",
    "[WikiSearch(x) -> a > b]",
    "line\n[QA(x)] next",
    "tab\t[QA(x) -> y]",
    "([QA(x) -> y])",
    "say “[QA(x) -> y]”",
    "[QA(a) -> b] [QA(a) -> b] [QA(a) -> b]",
    "[QA([QA(a) -> b]) -> c]",
    "[[QA(x)]]",
    "a [QA() -> ] b",
    "é [MT(pollo) -> chicken] 中",
    "中文。[QA(x) -> y]",
    "中文[QA(x) -> y]",
    "[Calculator(1)] -> [Calculator(2)]",
    "ends [QA(",
    "1-[Calculator(2)]",
    "[Calendar() -> Today is Monday, January 30, 2023.]",
    "[QA(x) -> [Calculator(1) -> 2]]",
    "two  [QA(x) -> y]  spaces",
]
WITHOUT_SYNTAX = [
    "[1]",
    "[Note(2)]",
    "x[QA(1)]",
    "_[QA(1)]",
    "9[QA(1)]",
    "[qa(x)]",
    "QA(x)",
    "[QA x]",
    "[ QA(x)]",
]


def test_texts_with_call_syntax_are_recognised() -> None:
    assert [text for text in WITH_SYNTAX if not has_call_syntax(text)] == []
    assert [text for text in WITHOUT_SYNTAX if has_call_syntax(text)] == []


@pytest.mark.parametrize("text", WITH_SYNTAX)
def test_calls_can_be_removed_from_a_text_with_call_syntax_of_its_own(text: str) -> None:
    """At every position, also inside the text's own call, and with a call equal to the text's own."""
    own = [placed("QA", 0, "a", "b"), placed("Calculator", 0, "1 + 1", "2"), placed("Calendar", 0, "", "x")]
    for position in range(len(text) + 1):
        calls = [dataclasses.replace(call, position=position) for call in own]
        assert remove_calls(insert_calls(text, calls), calls) == text
        calls[0] = dataclasses.replace(own[0], position=0)
        assert remove_calls(insert_calls(text, calls), calls) == text


def test_splitting_leaves_text_that_only_resembles_a_call() -> None:
    text = "[1] see [Note(2)] and x[Calculator(1)] or [Calculator 3]"
    assert split_calls(text) == [" " + text]
    parts = [" As", " [QA(a) -> b]", " said", " [QA(c)]", " so"]
    assert split_calls("As [QA(a) -> b] said [QA(c)] so") == parts


def test_removal_refuses_calls_that_are_not_there() -> None:
    call = placed("QA", 3, "x", "y")
    with pytest.raises(CallError, match="position 3"):
        remove_calls("a text without it", [call])
    with pytest.raises(CallError, match="outside"):
        insert_calls("ab", [call])


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        (" [QA(Who?) -> Ada]", (" [QA(Who?) ->", " Ada]")),
        (" [QA(Who?) -> a -> b]", (" [QA(Who?) ->", " a -> b]")),
        (" [Calendar() -> ]", (" [Calendar() ->", " ]")),
        (" [Calendar()]", (" [Calendar()]", "")),
    ],
)
def test_what_a_tool_writes_begins_behind_the_arrow(written: str, parts: tuple[str, str]) -> None:
    assert split_result(written) == parts
    assert "".join(parts) == written
