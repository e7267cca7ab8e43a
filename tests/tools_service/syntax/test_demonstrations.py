"""Texts with calls, as people write them: what is read, and what is told about the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tools_service.base.lines import Line, read_lines
from tools_service.syntax.demonstrations import (
    DemonstratedCall,
    Demonstration,
    Problem,
    read_demonstration,
    read_examples,
)

pytestmark = pytest.mark.unit


def lines(*texts: str) -> list[Line]:
    return [Line(number, text) for number, text in enumerate(texts, 1)]


def test_calls_are_taken_out_with_their_places() -> None:
    text = "[Units(1 m)] a, [Units( 2 m ) -> 2 yd] 2 [Units(3)] [Units(4)] b [Units(5)]"
    assert read_demonstration(7, text, "Units", results=True) == Demonstration(
        7,
        "a, 2 b",
        (
            DemonstratedCall("1 m", 0),
            DemonstratedCall("2 m", 2, "2 yd"),
            DemonstratedCall("3", 4),
            DemonstratedCall("4", 4),
            DemonstratedCall("5", 6),
        ),
    )


def test_examples_are_lines_of_text_or_json() -> None:
    dated = {"text": "It is [Units(1)] 2.", "date": "2020-02-29", "source": "mine"}
    examples = read_examples(
        lines("", "  a [Units(1)] 2 ", "\t", json.dumps(dated), "{ [Units(1)] 2"), "Units"
    )
    assert examples == [
        Demonstration(2, "a 2", (DemonstratedCall("1", 1),)),
        Demonstration(4, "It is 2.", (DemonstratedCall("1", 5),), "2020-02-29"),
        Problem(5, "not JSON: Expecting property name enclosed in double quotes at column 3"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no call", "has no call of Units; write [Units(…)] in front of its result"),
        ("[units(1)] 2", "has no call of Units"),
        ("[Units(1)]", "has no text but its calls"),
        ("a [Units(1) 2", "the call '[Units(1) 2' does not end with )]"),
        ("a [Units(1] 2", "does not end with )]"),
        ("a [Units()] 2", "the call '[Units()] 2' has no input"),
        ("a [Units([1])] 2", "has a bracket inside"),
        ("a [Units(1->2)] 2", "has an arrow"),
        ("a [Units(1)->2] 2", "has an arrow"),
        ("a([Units(1)] 2)", "the call '[Units(1)] 2)' needs a space in front of it"),
        (
            "a [Units(1)] 2 [Calculator(2)] 2",
            "has a call of another tool, [Calculator(…)]; an example shows one",
        ),
        ("a [Units(1)] {text}", "holds {text}, which only stands at the end of a prompt"),
        ("a\x07 [Units(1)] 2", r"has a line break or control character (\x07)"),
        ('{"text": "a\\nb [Units(1)] 2"}', r"has a line break or control character (\n)"),
        ('{"text": 5}', 'an object needs a field "text"'),
        ('{"Text": "a [Units(1)] 2"}', 'an object needs a field "text"'),
        ('{"text": "a [Units(1)] 2", "date": "soon"}', '"date" must be YYYY-MM-DD, not soon'),
        ('{"text": "a [Units(1)] 2", "date": 5}', '"date" must be YYYY-MM-DD, not 5'),
        ('{"text": "a [Units(1)] 2"', "not JSON"),
        ("{" * 100_000, "not JSON"),
    ],
)
def test_an_example_that_cannot_be_used_is_told_why(text: str, message: str) -> None:
    [problem] = read_examples(lines(text), "Units", other_tools=["Units", "Calculator"])
    assert isinstance(problem, Problem)
    assert problem.line == 1
    assert message in problem.message
    assert len(str(problem)) < 200
    assert str(problem).isprintable()


def test_lines_that_are_no_text_keep_their_number() -> None:
    data = b"a [Units(1)] 2\n\xff\xfe\n" + b"x" * 100 + b"\n"
    first, *problems = read_examples(read_lines([data], "", 50), "Units")
    assert isinstance(first, Demonstration)
    assert [str(problem)[:17] for problem in problems] == ["line 2: not UTF-8", "line 3: line too "]


@pytest.mark.parametrize(("takes_input", "usable"), [(True, 1), (False, 0)])
def test_a_tool_may_take_no_input(takes_input: bool, usable: int) -> None:
    found = read_examples(lines("a [Now(x)] b", "a [Now()] b"), "Now", takes_input)
    assert [isinstance(one, Demonstration) for one in found] == [usable == 1, usable == 0]


def test_notes_are_marked() -> None:
    assert str(Problem(2, "odd", is_note=True)) == "line 2: note: odd"


def test_no_lines_no_examples() -> None:
    nothing: list[Any] = read_examples([], "Units")
    assert nothing == []
