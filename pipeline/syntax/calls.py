"""API calls as strings: writes, parses, inserts and removes them (paper section 2, "Approach").

In: a tool's name, an input and a result; or a text x and its calls. Out: ``e(c)``, ``e(c, r)``, the
text x* that contains the calls, or x again. ``<API>``, ``</API>`` and the arrow are the ordinary
strings `` [``, ``]`` and `` -> ``. Every text x is handled as ``" " + x``, so that its first word
has the same tokens wherever it stands (docs/method.md, "From a text to tokens"). This module knows
no tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tools_service.base.errors import ToolformerError
from tools_service.tools.contract import TOOL_NAMES, ToolName

API = " ["
END = "]"
ARROW = " -> "

CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028\u2029"  # includes all line breaks
TOOLS_WITHOUT_INPUT: frozenset[ToolName] = frozenset({"Calendar"})

_CONTROL = re.compile(f"[{CONTROLS}]")
_CALL = re.compile(rf" \[(?:{'|'.join(TOOL_NAMES)})\([^\[\]\r\n]*?\)(?: -> [^\[\]\r\n]*)?\]")


class CallError(ToolformerError, ValueError):
    """A call that the syntax cannot express, or that is not at its position in the text."""


class PlacedCall(Protocol):
    """A call and the character offset in x before which it stands. `records.Call` is one."""

    @property
    def tool(self) -> ToolName: ...
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


def linearise(tool: ToolName, argument: str, result: str | None = None) -> str:
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


def parse_call(sampled: str, tool: ToolName) -> str | Malformed:
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
    if tool in TOOLS_WITHOUT_INPUT and rest.removesuffix(")"):
        return Malformed("input_not_empty")
    if not end:
        return Malformed("too_long")
    if not rest.endswith(")"):
        return Malformed("no_parenthesis")
    argument = rest[:-1].strip()
    return argument if argument or tool in TOOLS_WITHOUT_INPUT else Malformed("empty_input")


def insert_calls(text: str, calls: Sequence[PlacedCall]) -> str:
    """x*: `text` with each ``e(c, r)`` before the character at its position (section 2).

    Calls at the same position keep their order. A call at the start of the text has its space
    behind it, because x* is ``" " + x`` with calls and without its first space. Raises CallError
    for a position outside the text.
    """
    spaced_text = " " + text
    parts, copied = [], 0
    for call in sorted(calls, key=lambda call: call.position):
        if not 0 <= call.position <= len(text):
            raise CallError(f"{call.tool}({call.input}): position {call.position} outside 0..{len(text)}")
        offset = _spaced_offset(call.position)
        parts += [spaced_text[copied:offset], linearise(call.tool, call.input, call.result)]
        copied = offset
    return "".join([*parts, spaced_text[copied:]])[1:]


def remove_calls(augmented: str, calls: Sequence[PlacedCall] | None = None) -> str:
    """The text x from which `insert_calls` made `augmented`, byte for byte.

    With `calls` this is exact, and CallError is raised for a call that is not at its position.
    Without, everything that looks like a call is removed, which is exact if x has nothing like
    that.
    """
    if calls is None:
        return _CALL.sub("", " " + augmented)[1:]
    remaining, parts, copied = " " + augmented, [], 0
    for call in sorted(calls, key=lambda call: call.position):
        written = linearise(call.tool, call.input, call.result)
        start = _spaced_offset(call.position) - copied
        end = start + len(written)
        if call.position < 0 or remaining[start:end] != written:
            raise CallError(f"no{written} at position {call.position} of {augmented!r}")
        parts.append(remaining[:start])
        remaining, copied = remaining[end:], copied + start
    return "".join([*parts, remaining])[1:]


def split_calls(augmented: str) -> list[str]:
    """``" " + x*``, split before and after everything that looks like a call."""
    return [part for part in re.split(f"({_CALL.pattern})", " " + augmented) if part]


def _spaced_offset(position: int) -> int:
    """The offset in ``" " + x`` of a call at `position` in x; 0 stays 0, before the space."""
    return position + 1 if position else 0
