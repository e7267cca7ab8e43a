"""Parses a call while the model writes it (paper section 4.2).

In: the text after <API>. Out: a pending call, a reason why it is no call, or neither yet. A call at
inference ends at its arrow, because the tool supplies the result; a sampled call of step 2 ends at
</API>. This module knows no tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from tools_service.contract.declarations import known_tools
from tools_service.contract.spec import ToolSpec
from tools_service.syntax.calls import END, Malformed, parse_call

ARROW_HEAD = "->"  # without the spaces, which a tokenizer may put into other tokens


def callable_tools(declared: Iterable[ToolSpec] = ()) -> dict[str, bool]:
    """The tools that a text can name: the installed ones and `declared`; whether each takes an input."""
    return {tool: spec.takes_input for tool, spec in known_tools(declared).items()}


@dataclass(frozen=True, slots=True)
class PendingCall:
    """A call that has reached its arrow and waits for the tool's result."""

    tool: str
    input: str


def tool_of(written: str, tools: Collection[str]) -> str | None:
    """The tool that the text after <API> calls; None while its name is not complete, or wrong."""
    return next((tool for tool in tools if written.startswith(f"{tool}(")), None)


def parse_partial_call(
    written: str, tools: Mapping[str, bool], tools_off: Collection[str] = ()
) -> PendingCall | Malformed | None:
    """Parses the text after <API>: a call up to its arrow, no call, or None if undecided.

    `tools` are those of `callable_tools`.
    """
    head, arrow, _ = written.partition(ARROW_HEAD)
    tool = tool_of(head, tools)
    if tool is None:
        unfinished = not arrow and any(f"{name}(".startswith(head) for name in tools)
        return None if unfinished else Malformed("no_tool")
    if tool in tools_off:
        return Malformed("tool_off")
    if END in head:
        return Malformed("no_arrow")
    if arrow:
        argument = parse_call(head.rstrip() + END, tool, tools[tool])
        return argument if isinstance(argument, Malformed) else PendingCall(tool, argument)
    # The last characters may be the first part of an arrow, or of a character of several tokens.
    argument = parse_call(head.rstrip("\ufffd -"), tool, tools[tool])
    return argument if isinstance(argument, Malformed) and argument.reason != "too_long" else None


def names_disabled_tool(written: str, tools: Collection[str], tools_off: Collection[str]) -> bool:
    """Whether the text after <API> can only become a call of a tool in `tools_off`."""
    heads = {tool: f"{tool}(" for tool in tools}
    possible_tools = {t for t, head in heads.items() if head.startswith(written) or written.startswith(head)}
    return bool(possible_tools) and possible_tools <= set(tools_off)
