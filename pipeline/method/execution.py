"""Step 3, execute: every sampled call gets one result, or a reason for none (paper section 2, "Executing
API Calls").

In: the candidates of a batch of texts, the date each text's calendar shows, and a client of the tools. Out:
for every text its candidates in order, each with a result or a reason; `discarded` counts the reasons.
Calls travel in one list per tool, equal ones once; `aexecute` asks all tools at the same time. A tool that
fails costs a call its result: nothing is raised here.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.base.records import Candidate
from tools_service.tools.client import ToolClient
from tools_service.tools.contract import ToolInput, ToolName, ToolResult

Lists = dict[ToolName, list[ToolInput]]
Answers = dict[tuple[ToolName, ToolInput], ToolResult]


@dataclass(frozen=True, slots=True)
class ExecutedCall:
    """A candidate with its result, or with the reason why it has none and is dropped."""

    candidate: Candidate
    result: str | None
    reason: str | None


def execute(
    candidates: Sequence[Sequence[Candidate]], dates: Sequence[str | None], tools: ToolClient
) -> list[list[ExecutedCall]]:
    """The candidates of every text, executed. `dates` has one ISO date or None per text."""
    lists = _lists(candidates, dates)
    answers = [tools.call(tool, inputs) for tool, inputs in lists.items()]
    return _executed(candidates, dates, _by_call(lists, answers))


async def aexecute(
    candidates: Sequence[Sequence[Candidate]], dates: Sequence[str | None], tools: ToolClient
) -> list[list[ExecutedCall]]:
    """The same without blocking the event loop, all tools at once."""
    lists = _lists(candidates, dates)
    answers = await asyncio.gather(*(tools.acall(tool, inputs) for tool, inputs in lists.items()))
    return _executed(candidates, dates, _by_call(lists, answers))


def discarded(executed: Iterable[ExecutedCall]) -> dict[str, int]:
    """How many candidates have no result, by reason."""
    return dict(Counter(call.reason or "" for call in executed if call.result is None))


def _lists(candidates: Sequence[Sequence[Candidate]], dates: Sequence[str | None]) -> Lists:
    """The distinct inputs for each tool, in order of first appearance."""
    wanted: dict[ToolName, dict[ToolInput, None]] = {}
    for calls, date in zip(candidates, dates, strict=True):
        for call in calls:
            wanted.setdefault(call.tool, {})[ToolInput(call.input, date)] = None
    return {tool: list(inputs) for tool, inputs in wanted.items()}


def _by_call(lists: Lists, answers: Iterable[Sequence[ToolResult]]) -> Answers:
    return {
        (tool, one): result
        for (tool, inputs), results in zip(lists.items(), answers, strict=True)
        for one, result in zip(inputs, results, strict=True)
    }


def _executed(
    candidates: Sequence[Sequence[Candidate]], dates: Sequence[str | None], answers: Answers
) -> list[list[ExecutedCall]]:
    def one(call: Candidate, date: str | None) -> ExecutedCall:
        answer = answers[call.tool, ToolInput(call.input, date)]
        return ExecutedCall(call, answer.result, answer.reason)

    return [[one(call, date) for call in calls] for calls, date in zip(candidates, dates, strict=True)]
