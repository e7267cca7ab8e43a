"""Step 3: every candidate leaves with a result or a reason, in its place."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest

from pipeline.base.records import Candidate
from pipeline.method.execution import ExecutedCall, execute
from tools_service.config import ToolsConfig
from tools_service.contract.tool import ToolInput, ToolResult
from tools_service.tools.calculator import Calculator
from tools_service.tools.calendar import Calendar
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit


class Counting:
    """A client that keeps the lists it was given, and answers from local tools."""

    def __init__(self) -> None:
        tools = {"Calculator": Calculator(), "Calendar": Calendar()}
        self.client = LocalTools(tools, ToolsConfig(cache_size=0))
        self.lists: list[tuple[str, list[ToolInput]]] = []

    def call(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        self.lists.append((tool, list(inputs)))
        return self.client.call(tool, inputs)

    async def acall(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        self.lists.append((tool, list(inputs)))
        return await self.client.acall(tool, inputs)


def candidate(tool: str, text: str, position: int = 0) -> Candidate:
    return Candidate(tool=tool, position=position, token_index=position, p_api=0.5, input=text)


BATCH = [
    [candidate("Calculator", "1+1", 4), candidate("Calendar", ""), candidate("Calculator", "1/0", 9)],
    [],
    [candidate("Calculator", "1+1", 7), candidate("Calendar", "", 3), candidate("QA", "Who?", 2)],
    [candidate("Calendar", "", 1), candidate("Calculator", "1+1", 1)],
]
DATES: list[str | None] = ["2023-01-30", None, None, "2023-01-30"]


def executed(tools: Counting, dates: list[str | None] = DATES) -> list[list[ExecutedCall]]:
    return asyncio.run(execute(BATCH, dates, tools))


def test_every_candidate_has_its_own_texts_result_or_a_reason() -> None:
    calls = executed(Counting())
    assert [[call.candidate for call in text] for text in calls] == BATCH
    monday = "Today is Monday, January 30, 2023."
    assert [[call.result or call.reason for call in text] for text in calls] == [
        ["2", monday, "division by zero"],
        [],
        ["2", "no date", "tool unreachable"],
        [monday, "2"],
    ]


def test_each_tool_gets_one_list_with_equal_calls_once() -> None:
    tools = Counting()
    executed(tools)
    assert [tool for tool, _ in tools.lists] == ["Calculator", "Calendar", "QA"]
    assert all(len(set(inputs)) == len(inputs) for _, inputs in tools.lists)
    assert tools.lists[1] == ("Calendar", [ToolInput("", "2023-01-30"), ToolInput("", None)])


def test_dropped_candidates_have_a_reason() -> None:
    calls = [call for text in executed(Counting()) for call in text]
    reasons = Counter(call.reason for call in calls if call.result is None)
    assert reasons == {"division by zero": 1, "no date": 1, "tool unreachable": 1}
    assert all(call.reason is None for call in calls if call.result is not None)


def test_texts_and_dates_must_be_parallel() -> None:
    with pytest.raises(ValueError, match="shorter"):
        executed(Counting(), DATES[:-1])
