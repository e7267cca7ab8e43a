"""The contract of every tool (paper section 3): inputs in, results or reasons for none out.

A tool is a plain class with a `name`. It maps a list of `ToolInput` to a list of `ToolResult` of
the same length and order. If it cannot answer an input it says why and does not raise. It knows no
Ray, no batching across callers, no cache and no deadline: client.py and serving/ add those.
`answer` calls a tool and holds even a broken one to the contract.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tools_service.base.errors import ConfigurationError

logger = logging.getLogger(__name__)

# Reasons that this package gives in a tool's place. They concern a moment, not the input: the same
# call may succeed later, so they are never cached. Manifests count reasons.
DEADLINE = "deadline"
OVERLOADED = "overloaded"
UNREACHABLE = "tool unreachable"
REPLICA_DIED = "replica died"
TOOL_FAILED = "tool failed"
MALFORMED_ANSWER = "malformed answer"
TOOL_CHANGED = "tool changed"
TRANSIENT = frozenset(
    {DEADLINE, OVERLOADED, UNREACHABLE, REPLICA_DIED, TOOL_FAILED, MALFORMED_ANSWER, TOOL_CHANGED}
)

EMPTY_RESULT = "empty result"


@dataclass(frozen=True, slots=True)
class ToolInput:
    """The text between a call's parentheses, and its document's ISO date (YYYY-MM-DD), if any."""

    text: str
    date: str | None = None


@dataclass(frozen=True, slots=True)
class ToolResult:
    """A result, or the reason for none: exactly one of the two is a string."""

    result: str | None = None
    reason: str | None = None


class Tool(Protocol):
    """A tool: `__call__` maps inputs to results, same length and order. It may have a `name`."""

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """Answer every input; never raise because of one."""
        ...


class ToolUnavailableError(ConfigurationError):
    """This version, or this configuration, cannot provide a tool."""


class MalformedAnswerError(TypeError):
    """A tool returned something else than a list with a result for each input."""


def tool_name(tool: Tool) -> str:
    """What messages call a tool: its `name`, or else its class's."""
    return str(getattr(tool, "name", type(tool).__name__))


def answer(tool: Tool, inputs: Sequence[ToolInput]) -> list[ToolResult]:
    """Return the answers of `tool`. If it raises or breaks the contract, ask for each input alone."""
    try:
        return _validated(tool(inputs), len(inputs))
    except (Exception, SystemExit) as error:  # a tool is isolated here: its failure becomes a reason
        if len(inputs) != 1:
            logger.warning(
                "%s failed on %d calls; each is tried alone", tool_name(tool), len(inputs), exc_info=True
            )
            return [result for call in inputs for result in answer(tool, [call])]
        what = f"{type(error).__name__}: {error}"
        logger.warning("%s failed on %.80r: %s", tool_name(tool), inputs[0].text, what)
        reason = MALFORMED_ANSWER if isinstance(error, MalformedAnswerError) else TOOL_FAILED
        return [ToolResult(reason=reason)]


def without_result(inputs: Sequence[ToolInput], reason: str) -> list[ToolResult]:
    """Return the same `reason` for every input."""
    return [ToolResult(reason=reason)] * len(inputs)


def _validated(results: object, expected: int) -> list[ToolResult]:
    """Return `results`; MalformedAnswerError unless they are `expected` valid ones."""
    if isinstance(results, list) and len(results) == expected:
        kept = [result for result in results if isinstance(result, ToolResult)]
        texts = [result.reason if result.result is None else result.result for result in kept]
        if len(kept) == expected and all(isinstance(text, str) for text in texts):
            return kept
    raise MalformedAnswerError(f"wanted a list of {expected} results or reasons, got {results!r:.100}")
