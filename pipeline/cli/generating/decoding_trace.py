"""What decoding did for one prompt, call by call (`generate --trace`).

In: the events of a prompt, as they come. Out: a record of every call that was begun, for JSON or as lines
for people. Times are those at which the events arrive here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.inference.generation import (
    BeginEvent,
    CallEvent,
    Event,
    FailureEvent,
    Generation,
    ResultEvent,
    StopReason,
)
from tools_service.base.printable import printable

_FAILURES = {
    "no_tool": "it names no tool",
    "wrong_tool": "it names no tool",
    "tool_off": "its tool is switched off",
    "no_arrow": "it ends before its arrow",
    "ended": "the text ends inside it",
    "special_token": "it has a special token",
    "too_long": "it has no arrow before its limit (--max-call-tokens, or the context)",
    "no_room": "the context has no room for the result",
    "unsafe_result": "the result would break the syntax of calls",
    "newline": "its input has a line break",
    "control_character": "its input has a control character",
    "bracket": "its input has a bracket",
    "arrow": "its input has an arrow",
    "broken_character": "its input has half a character",
    "empty_input": "its input is empty",
    "input_not_empty": "its tool takes no input",
    "no_parenthesis": "its input has no closing parenthesis",
}
STOPS: dict[StopReason, str] = {
    "eos": "end-of-text token",
    "newline": "end of a line",
    "stop": "a stop string",
    "length": "--max-new-tokens",
    "context": "the context is full",
    "refused": "the prompt cannot be continued",
    "cancelled": "interrupted",
}


@dataclass(slots=True)
class CallTrace:
    """A call that was begun: with a `result`, or with the `reason` why it failed.

    It stood before the character `position` of the generated text, where <API> had the rank `rank` among
    the next tokens (from 1). `seconds` passed until the tool answered; None if it was not asked.
    """

    position: int
    rank: int
    written: str = ""
    result: str | None = None
    reason: str | None = None
    seconds: float | None = None


@dataclass(slots=True)
class DecodingTrace:
    """The calls of one prompt, in the order in which they were begun."""

    calls: list[CallTrace] = field(default_factory=list)
    clock: Callable[[], float] = time.monotonic
    _open: list[CallTrace] = field(default_factory=list)  # a chained call is behind its outer one
    _asked_at: float | None = None

    def add(self, event: Event) -> None:
        """Record an event."""
        match event:
            case BeginEvent(position, rank):
                self._open.append(CallTrace(position, rank))
                self.calls.append(self._open[-1])
            case CallEvent(tool, argument):
                self._open[-1].written = f"{tool}({argument})"
                self._asked_at = self.clock()
            case ResultEvent(completed):
                self._end().result = completed.result
            case FailureEvent(failed):
                call = self._end()
                call.written, call.reason = failed.written, failed.reason

    def _end(self) -> CallTrace:
        call = self._open.pop()
        if self._asked_at is not None:
            call.seconds, self._asked_at = round(self.clock() - self._asked_at, 6), None
        return call

    def json(self) -> list[dict[str, Any]]:
        """The calls as objects."""
        return [asdict(call) for call in self.calls]

    def lines(self, prompt: str, generation: Generation) -> Iterator[str]:
        """The trace for people."""
        yield f"trace of {printable(prompt, 60)!r}"
        for call in self.calls:
            yield f"  at character {call.position}, <API> ranked {call.rank}: {_describe(call)}"
        failed = len(generation.failed)
        yield (
            f"  {_count(len(generation.calls), 'call')} and {_count(failed, 'failed call')}; "
            f"{_count(generation.tokens, 'token')} of text, {generation.sampled_tokens} chosen by the model "
            f"after {generation.prompt_tokens} of the prompt; ended by: {STOPS[generation.stop_reason]}"
        )


def failure(reason: str) -> str:
    """Why a call failed, in words. A reason that is not of decoding is the tool's own."""
    return _FAILURES.get(reason) or f"no result from the tool: {printable(reason)}"


def _describe(call: CallTrace) -> str:
    took = "" if call.seconds is None else f" (answered in {call.seconds:.3f} s)"
    if call.result is not None:
        return printable(f"{call.written} -> {call.result}", 1_000) + took
    why = "not finished" if call.reason is None else f"failed, {failure(call.reason)}"
    return f"{printable(call.written)}: {why}{took}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
