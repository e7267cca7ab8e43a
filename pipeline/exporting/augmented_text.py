"""A text of C* → the parts of text and the calls that it consists of.

In: x*, and x, the same text without its calls. Out: strings and calls in order, from which x* can be
written again. Call syntax that was in x before any call was inserted stays text.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tools_service.base.errors import ToolformerError
from tools_service.syntax.calls import API, ARROW, END, CallError, linearise, split_calls


class ExportError(ToolformerError):
    """A text of C* cannot be taken apart."""


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """A call in a text, with its result."""

    tool: str
    input: str
    result: str


def parts_of(text: str, plain: str, tools: Collection[str]) -> list[str | WrittenCall]:
    """The parts of ``" " + text`` in order. Its strings, put together, are ``" " + plain``.

    Raises ExportError if `text` is not `plain` with calls of `tools` inserted.
    """
    rest = " " + plain
    parts: list[str | WrittenCall] = []
    for part in split_calls(text, tools):
        if rest.startswith(part):
            rest = rest[len(part) :]
            parts.append(part)
        elif (call := _call(part)) is not None:
            parts.append(call)
        else:
            raise ExportError(f"{part.strip()[:80]!r} is neither a call nor in the text without calls")
    if rest:
        raise ExportError(f"{rest.strip()[:80]!r} of the text without calls is missing")
    return parts


def _call(part: str) -> WrittenCall | None:
    if not (part.startswith(API) and part.endswith(END)):
        return None
    head, arrow, result = part[len(API) : -len(END)].partition(ARROW)
    tool, _, argument = head.partition("(")
    call = WrittenCall(tool, argument[:-1], result)
    try:
        written = linearise(tool, call.input, result)
    except CallError:
        return None
    return call if arrow and written == part else None
