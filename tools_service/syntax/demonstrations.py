"""Demonstrations: texts with calls in them, as prompts show them and as users write examples.

In: a text in which calls stand; lines of such texts. Out: the text without the calls, their inputs and
positions, or what is wrong and in which line. It calls no tool.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from tools_service.base.json_lines import parse_json
from tools_service.base.lines import Line
from tools_service.base.printable import printable
from tools_service.syntax.calls import ARROW, CONTROLS, END, Malformed, parse_call

_MAX_SHOWN = 40  # characters of a text in a message
_CALL_PROBLEMS = {
    "arrow": "has an arrow; a prompt shows calls without their results",
    "bracket": "has a bracket inside",
    "empty_input": "has no input",
    "input_not_empty": "has an input, but this tool takes none",
    "broken_character": "has a broken character",
}
_CONTROL = re.compile(f"[{CONTROLS}]")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong in a file, and in which line, from 1. With a note the file can be used all the same."""

    line: int
    message: str
    is_note: bool = False

    def __str__(self) -> str:
        return f"line {self.line}: {'note: ' if self.is_note else ''}{self.message}"


@dataclass(frozen=True, slots=True)
class DemonstratedCall:
    """The input of a call, and the character of the text before which the call stands."""

    input: str
    position: int
    result: str | None = None
    """The result that an example states."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A text and the calls in it; `line` is the first one of the text with calls."""

    line: int
    text: str
    calls: tuple[DemonstratedCall, ...]
    date: str | None = None
    """The ISO date of the text, for tools whose results depend on it."""


def read_demonstration(
    line: int, with_calls: str, tool: str, takes_input: bool | None = True, *, results: bool = False
) -> Demonstration | Problem:
    """The text with calls in `with_calls`, and its calls of `tool`.

    `takes_input` None: calls may have an input or none. `results`: calls may have a result.
    """
    with_calls = " " + with_calls
    without, calls, end = "", [], 0
    for match in re.finditer(rf"\[{re.escape(tool)}\(", with_calls):
        place, call_line = match.start(), line + with_calls.count("\n", 0, match.start())
        shown = f"the call {printable(with_calls[place : place + _MAX_SHOWN])!r}"
        call, result = with_calls[place + 1 :], None
        written, arrow, stated = call.partition(END)[0].partition(ARROW)
        if results and arrow:
            call, result = written + END, stated
        argument = _parsed(call, tool, takes_input)
        if isinstance(argument, Malformed):
            return Problem(
                call_line, f"{shown} {_CALL_PROBLEMS.get(argument.reason, 'does not end with )]')}"
            )
        if with_calls[place - 1] != " ":
            return Problem(call_line, f"{shown} needs a space in front of it")
        without += with_calls[end : place - 1]
        calls.append(DemonstratedCall(argument, max(0, len(without) - 1), result))
        end = with_calls.index(END, place) + 1
    without += with_calls[end:]
    return Demonstration(line, without[1:], tuple(calls))


def read_examples(
    lines: Iterable[Line], tool: str, takes_input: bool = True, other_tools: Iterable[str] = ()
) -> list[Demonstration | Problem]:
    """The examples in `lines`: each is a text with a call in it, or a JSON object with such a `text`.

    An object may also have the `date` of its text. Calls may have their result. Empty lines are none.
    """
    other_calls = [f"[{name}(" for name in other_tools if name != tool]
    return [
        _read_example(line, tool, takes_input, other_calls)
        for line in lines
        if line.problem or line.text.strip()
    ]


def _read_example(
    line: Line, tool: str, takes_input: bool, other_calls: Iterable[str]
) -> Demonstration | Problem:
    if line.problem:
        return Problem(line.number, line.problem)
    text, day = line.text, None
    if text.lstrip().startswith("{"):
        try:
            text, day = _fields(parse_json(text))
        except ValueError as error:
            return Problem(line.number, str(error))
    text = text.strip()
    if "{text}" in text:
        return Problem(line.number, "holds {text}, which only stands at the end of a prompt")
    if control := _CONTROL.search(text):
        return Problem(line.number, f"has a line break or control character ({printable(control[0])})")
    if other := next((call for call in other_calls if call in text), None):
        return Problem(line.number, f"has a call of another tool, {other}…)]; an example shows one tool")
    example = read_demonstration(line.number, text, tool, takes_input, results=True)
    if isinstance(example, Problem):
        return example
    if not example.calls:
        return Problem(line.number, f"has no call of {tool}; write [{tool}(…)] in front of its result")
    if not example.text.strip():
        return Problem(line.number, "has no text but its calls")
    return replace(example, date=day)


def _fields(value: Any) -> tuple[str, str | None]:
    """The text and the date of an example in JSON. Raises ValueError."""
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise ValueError('an object needs a field "text" with the text of the example')
    day = value.get("date")
    if day is not None:
        try:
            date.fromisoformat(day)
        except (TypeError, ValueError) as error:
            raise ValueError(f'"date" must be YYYY-MM-DD, not {printable(str(day), 40)}') from error
    return value["text"], day


def _parsed(sampled: str, tool: str, takes_input: bool | None) -> str | Malformed:
    if takes_input is not None:
        return parse_call(sampled, tool, takes_input)
    without = parse_call(sampled, tool, takes_input=False)
    return parse_call(sampled, tool) if isinstance(without, Malformed) else without
