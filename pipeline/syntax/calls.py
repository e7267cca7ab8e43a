"""The syntax of calls, and its tokens under any tokenizer (paper section 2, "Approach").

In: a tool's name, an input, a result; or a text and its calls; or a tokenizer. Out: ``e(c)`` and ``e(c,
r)``, the text x* with the calls in it and x again, the ids of ``<API>``. The vocabulary is not changed:
``<API>``, ``</API>`` and the arrow are the ordinary strings `` [``, ``]`` and `` -> ``. This module knows
no model and decides nothing about calls.

Every text is looked at as ``s = " " + x`` and tokenised as something else's continuation, so that a text's
first word is the same token wherever the text stands (docs/method.md, "From a text to tokens").
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

CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028\u2029"  # line breaks among them
_CONTROL = re.compile(f"[{CONTROLS}]")
_CALL = re.compile(rf" \[(?:{'|'.join(TOOL_NAMES)})\([^\[\]\r\n]*?\)(?: -> [^\[\]\r\n]*)?\]")


class CallError(ToolformerError, ValueError):
    """A call that cannot be written in the syntax, or that is not where it should be."""


class PlacedCall(Protocol):
    """A call and the character offset in x before which it stands; `records.Call` is one."""

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
    """Why a drawn text is not a call of the wanted tool; the manifest counts these reasons."""

    reason: str


def linearise(tool: ToolName, argument: str, result: str | None = None) -> str:
    """``e(c)`` or, with a result, ``e(c, r)``, with the space of ``<API>`` in front.

    Raises CallError where the rendered call could not be found and removed again: a bracket or a control
    character in input or result, an arrow in the input. Tools clean their results of these before.
    """
    for name, part in (("input", argument), ("result", result or "")):
        if "[" in part or END in part or _CONTROL.search(part):
            raise CallError(f"{tool}: the {name} has a bracket or a control character: {part!r}")
    if "->" in argument:
        raise CallError(f"{tool}: the input has an arrow: {argument!r}")
    arrow = "" if result is None else ARROW + result
    return f"{API}{tool}({argument}){arrow}{END}"


def parse_call(drawn: str, tool: ToolName) -> str | Malformed:
    """The input of the call that `drawn` (what the model wrote after ``<API>``) makes of `tool`, or why it
    makes none.

    What follows the first ``]`` is not part of the call. White space around the input is dropped. An
    unfinished draw gets the reason why it could not have become a call, or "too_long" if it could.
    """
    body, end, _ = drawn.partition(END)
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
    if tool == "Calendar" and rest.removesuffix(")"):
        return Malformed("input_not_empty")
    if not end:
        return Malformed("too_long")
    if not rest.endswith(")"):
        return Malformed("no_parenthesis")
    argument = rest[:-1].strip()
    return argument if argument or tool == "Calendar" else Malformed("empty_input")


def insert_calls(text: str, calls: Sequence[PlacedCall]) -> str:
    """x*: the text with each ``e(c, r)`` before the character its position names (paper section 2, "Model
    Finetuning").

    Calls at one position stand in the order given. At the start of the text a call has its space behind it
    instead of in front: x* is ``s`` with the calls inserted, without the first space of ``s``.
    """
    pieces, done = [], 0
    for call in sorted(calls, key=lambda call: call.position):
        at = _offset(text, call)
        pieces += [(" " + text)[done:at], linearise(call.tool, call.input, call.result)]
        done = at
    return "".join([*pieces, (" " + text)[done:]])[1:]


def remove_calls(augmented: str, calls: Sequence[PlacedCall] | None = None) -> str:
    """The text that `insert_calls` started from, byte for byte.

    With the calls that were inserted this is exact for every text. Without them whatever looks like a call
    goes: that gives x back exactly if x itself contains nothing that looks like a call of one of the five
    tools.
    """
    if calls is None:
        return _CALL.sub("", " " + augmented)[1:]
    rest, pieces, done = " " + augmented, [], 0
    for call in sorted(calls, key=lambda call: call.position):
        written = linearise(call.tool, call.input, call.result)
        keep = (call.position + 1 if call.position else 0) - done
        if call.position < 0 or rest[keep : keep + len(written)] != written:
            raise CallError(f"no{written} at position {call.position} of {augmented!r}")
        pieces.append(rest[:keep])
        rest, done = rest[keep + len(written) :], done + keep
    return "".join([*pieces, rest])[1:]


def split_calls(augmented: str) -> list[str]:
    """``" " + x*`` cut before and after whatever looks like a call; joined, the pieces give it back."""
    return [piece for piece in re.split(f"({_CALL.pattern})", " " + augmented) if piece]


def _offset(text: str, call: PlacedCall) -> int:
    """Where in ``" " + text`` the call goes: before the leading space at position 0, else before that
    character."""
    if not 0 <= call.position <= len(text):
        raise CallError(f"{call.tool}({call.input}): position {call.position} outside 0..{len(text)}")
    return call.position + 1 if call.position else 0
