"""The contract of every tool (paper section 3): a list of inputs in, a list of results or reasons for none
out.

A tool is a plain class with a `name` that maps a list of `ToolInput` to a list of `ToolResult` of the same
length and order. It knows nothing of Ray, batching across callers, caches or deadlines: service.py and
client.py add those. A tool does not raise for an input it cannot answer; it says why. `answer` is the seam
that holds even a broken tool to this.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

logger = logging.getLogger(__name__)

ToolName = Literal["QA", "WikiSearch", "Calculator", "Calendar", "MT"]
TOOL_NAMES: tuple[ToolName, ...] = get_args(ToolName)

# Reasons that this package gives in a tool's place. They say something about a moment, not about the input,
# so they are never cached and the same call may succeed later. Reasons are few and fixed: they are counted in
# manifests.
DEADLINE = "deadline"
OVERLOADED = "overloaded"
UNREACHABLE = "tool unreachable"
REPLICA_DIED = "replica died"
TOOL_FAILED = "tool failed"
MALFORMED_ANSWER = "malformed answer"
TRANSIENT = frozenset({DEADLINE, OVERLOADED, UNREACHABLE, REPLICA_DIED, TOOL_FAILED, MALFORMED_ANSWER})

EMPTY_RESULT = "empty result"

# The tools whose result depends on the text's date; the client leaves it out of other tools' calls, so that
# equal inputs of different texts are one call.
DATED_TOOLS = frozenset({"Calendar"})


@dataclass(frozen=True, slots=True)
class ToolInput:
    """What stands between the parentheses of a call, and the date of its text (ISO `YYYY-MM-DD`) where there
    is one.
    """

    text: str
    date: str | None = None


@dataclass(frozen=True, slots=True)
class ToolResult:
    """One result, or the reason why there is none: exactly one of the two is a string."""

    result: str | None = None
    reason: str | None = None


class Tool(Protocol):
    """One tool: `name` as it stands in calls, `__call__` from inputs to results, same length, same order."""

    name: str

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """Answer every input; never raise for one of them."""
        ...


class MalformedAnswerError(TypeError):
    """A tool returned something that is not a list of as many results as there were inputs."""


def _checked(results: object, expected: int) -> list[ToolResult]:
    """`results` if it is a list of `expected` well-formed results; MalformedAnswerError otherwise."""
    if not isinstance(results, list) or len(results) != expected:
        size = f" of {len(results)}" if isinstance(results, list) else ""
        raise MalformedAnswerError(f"wanted a list of {expected} results, got {type(results).__name__}{size}")
    for result in results:
        if not isinstance(result, ToolResult):
            raise MalformedAnswerError(f"wanted a ToolResult, got {type(result).__name__}")
        if not isinstance(result.reason if result.result is None else result.result, str):
            raise MalformedAnswerError("a ToolResult needs a result or a reason, as text")
    return results


def answer(tool: Tool, inputs: Sequence[ToolInput]) -> list[ToolResult]:
    """What `tool` says to `inputs`; where it raises or breaks the contract, the inputs are asked one by one.

    So one bad input costs itself its result, never its neighbours.
    """
    try:
        return _checked(tool(inputs), len(inputs))
    except Exception as error:  # a tool is isolated here: its failure becomes a reason
        if len(inputs) != 1:
            return [result for one in inputs for result in answer(tool, [one])]
        logger.warning("%s failed on %.80r: %s: %s", tool.name, inputs[0].text, type(error).__name__, error)
        reason = MALFORMED_ANSWER if isinstance(error, MalformedAnswerError) else TOOL_FAILED
        return [ToolResult(reason=reason)]
