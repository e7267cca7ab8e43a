"""Step 3, execute: every sampled call gets one result, or a reason why there is none (paper
section 2, "Executing API Calls").

In: the candidates of a batch of texts, the date each text's calendar shows, and a client of
the tools. Out: for every text its candidates in order, each with a result or a reason. Calls
travel in one list per tool, equal calls once. A tool that fails costs a call its result;
nothing is raised here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.base.records import Candidate
from tools_service.contract.tool import ToolInput, ToolResult
from tools_service.tools.client import ToolClient

InputsByTool = dict[str, list[ToolInput]]
ResultByCall = dict[tuple[str, ToolInput], ToolResult]


@dataclass(frozen=True, slots=True)
class ExecutedCall:
    """A candidate with its result, or with the reason why it has none and is dropped."""

    candidate: Candidate
    result: str | None
    reason: str | None


async def execute(
    candidates: Sequence[Sequence[Candidate]],
    dates: Sequence[str | None],
    tools: ToolClient,
) -> list[list[ExecutedCall]]:
    """The candidates of every text, executed; all tools are asked at once.

    `dates` has an ISO date or None per text.
    """
    inputs = _inputs_by_tool(candidates, dates)
    asking = [
        tools.acall(tool, tool_inputs) for tool, tool_inputs in inputs.items()
    ]
    results = await asyncio.gather(*asking)
    return _executed(candidates, dates, _result_by_call(inputs, results))


def _inputs_by_tool(
    candidates: Sequence[Sequence[Candidate]], dates: Sequence[str | None]
) -> InputsByTool:
    """The distinct inputs for each tool, in order of first appearance."""
    # A dict keeps the order and drops what comes again.
    distinct: dict[str, dict[ToolInput, None]] = {}
    for calls, date in zip(candidates, dates, strict=True):
        for call in calls:
            inputs = distinct.setdefault(call.tool, {})
            inputs[ToolInput(call.input, date)] = None
    return {tool: list(inputs) for tool, inputs in distinct.items()}


def _result_by_call(
    inputs: InputsByTool, results: Iterable[Sequence[ToolResult]]
) -> ResultByCall:
    by_call: ResultByCall = {}
    for (tool, tool_inputs), tool_results in zip(
        inputs.items(), results, strict=True
    ):
        for tool_input, result in zip(tool_inputs, tool_results, strict=True):
            by_call[tool, tool_input] = result
    return by_call


def _executed(
    candidates: Sequence[Sequence[Candidate]],
    dates: Sequence[str | None],
    results: ResultByCall,
) -> list[list[ExecutedCall]]:
    executed = []
    for calls, date in zip(candidates, dates, strict=True):
        of_text = []
        for call in calls:
            answer = results[call.tool, ToolInput(call.input, date)]
            of_text.append(ExecutedCall(call, answer.result, answer.reason))
        executed.append(of_text)
    return executed
