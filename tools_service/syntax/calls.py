"""API calls as strings: writes, parses, inserts and removes them (paper section 2, "Approach").

In: a tool's name, an input and a result; or a text x and its calls. Out: ``e(c)``, ``e(c, r)``, the
text x* that contains the calls, or x again. ``<API>``, ``</API>`` and the arrow are the ordinary
strings `` [``, ``]`` and `` -> ``. Every text x is handled as ``" " + x``, so that its first word
has the same tokens wherever it stands (docs/method.md, "From a text to tokens"). This module knows
no tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from tools_service.base.errors import ToolformerError
from tools_service.contract.declarations import with_installed

API = " ["
END = "]"
ARROW = " -> "

CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028\u2029"  # includes all line breaks

_CONTROL = re.compile(f"[{CONTROLS}]")


class CallError(ToolformerError, ValueError):
    """A call that the syntax cannot express, or that is not at its position in the text."""


class PlacedCall(Protocol):
    """A call with its result, and the character of the text before which it stands."""

    @property
    def tool(self) -> str: ...
    @property
    def position(self) -> int: ...
    @property
    def input(self) -> str: ...
    @property
    def result(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Malformed:
    """Why a sampled text is not a call of the expected tool. The manifest counts these reasons."""

    reason: str


def linearise(tool: str, argument: str, result: str | None = None) -> str:
    """``e(c)`` or, with a result, ``e(c, r)``. Both begin with the space of ``<API>``.

    Raises CallError if the written call could not be recognised and removed again: the input or the
    result has a bracket or a control character, or the input has an arrow. Tools remove these from
    their results.
    """
    for name, value in (("input", argument), ("result", result or "")):
        if "[" in value or END in value or _CONTROL.search(value):
            raise CallError(f"{tool}: the {name} has a bracket or a control character: {value!r}")
    if "->" in argument:
        raise CallError(f"{tool}: the input has an arrow: {argument!r}")
    arrow = "" if result is None else ARROW + result
    return f"{API}{tool}({argument}){arrow}{END}"


def split_result(written: str) -> tuple[str, str]:
    """A written call in two: what the model writes, arrow included, and what the tool writes, the bracket
    at the end included. A call without a result has nothing of the second kind."""
    head, arrow, result = written.partition(ARROW)
    return (head + ARROW.rstrip(), " " + result) if arrow else (written, "")


def parse_call(sampled: str, tool: str, takes_input: bool = True) -> str | Malformed:
    """The input of the call of `tool` in `sampled`, the text that the model wrote after ``<API>``.

    Ignores text after the first ``]`` and white space around the input. Malformed if this is no
    such call; the reason is "too_long" if more tokens could have completed it.
    """
    body, end, _ = sampled.partition(END)
    head = f"{tool}("
    if not body.startswith(head):
        return Malformed("too_long" if not end and head.startswith(body) else "wrong_tool")
    rest = body[len(head) :]
    if control := _CONTROL.search(rest):
        return Malformed("newline" if control.group() in "\r\n" else "control_character")
    if "[" in rest:
        return Malformed("bracket")
    if "->" in rest:
        return Malformed("arrow")
    if "\ufffd" in rest:
        return Malformed("broken_character")
    if not takes_input and rest.removesuffix(")"):
        return Malformed("input_not_empty")
    if not end:
        return Malformed("too_long")
    if not rest.endswith(")"):
        return Malformed("no_parenthesis")
    argument = rest[:-1].strip()
    return argument if argument or not takes_input else Malformed("empty_input")


def without_result(sampled: str) -> str:
    """``Tool(input)]`` of ``Tool(input) -> result]``, of which more or less may be sampled; other texts
    as they are."""
    call, arrow, _ = sampled.partition("->")
    return f"{call.rstrip()}{END}" if arrow and END not in call else sampled


def insert_calls(text: str, calls: Sequence[PlacedCall]) -> str:
    """x*: `text` with each ``e(c, r)`` before the character at its position (section 2).

    Calls at the same position keep their order. A call at the start of the text has its space
    behind it, because x* is ``" " + x`` with calls and without its first space. Raises CallError
    for a position outside the text.
    """
    augmented = " " + text
    # From the last call to the first, so that the offsets of the remaining calls stay right.
    for call in sorted(calls, key=lambda call: call.position)[::-1]:
        if not 0 <= call.position <= len(text):
            raise CallError(f"{call.tool}({call.input}): position {call.position} outside 0..{len(text)}")
        offset = _spaced_offset(call.position)
        written = linearise(call.tool, call.input, call.result)
        augmented = augmented[:offset] + written + augmented[offset:]
    return augmented[1:]


def remove_calls(augmented: str, calls: Sequence[PlacedCall]) -> str:
    """The text x from which `insert_calls` made `augmented` with `calls`, byte for byte.

    Raises CallError for a call that is not at its position.
    """
    text = " " + augmented
    # From the first call to the last: the text before a call is then the original text.
    for call in sorted(calls, key=lambda call: call.position):
        written = linearise(call.tool, call.input, call.result)
        offset = _spaced_offset(call.position)
        if call.position < 0 or not text.startswith(written, offset):
            raise CallError(f"no{written} at position {call.position} of {augmented!r}")
        text = text[:offset] + text[offset + len(written) :]
    return text[1:]


def has_call_syntax(text: str, tools: Iterable[str] = ()) -> bool:
    """Whether a text without calls already holds the beginning of one, ``[QA(`` for example.

    It counts for the installed tools and for `tools`. The model may learn such a call although no
    tool answered it. After a Latin letter, a digit or an underscore it is an index (``x[QA(1)]``) and
    does not count.
    """
    return API.strip() in text and _call_head(with_installed(tools)).search(text) is not None


def split_calls(augmented: str, tools: Iterable[str] = ()) -> list[str]:
    """``" " + x*``, split before and after what looks like a call of an installed tool or of `tools`."""
    return [part for part in _call(with_installed(tools)).split(" " + augmented) if part]


@cache
def _call_head(tools: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z0-9_]){re.escape(API.strip())}(?:{'|'.join(tools)})\(")


@cache
def _call(tools: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"( \[(?:{'|'.join(tools)})\([^\[\]\r\n]*?\)(?: -> [^\[\]\r\n]*)?\])")


def _spaced_offset(position: int) -> int:
    """The offset in ``" " + x`` of a call at `position` in x; 0 stays 0, before the space."""
    return position + 1 if position else 0
