"""Calls without an answer are seen while they wait, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from pipeline.annotation import tool_waits
from pipeline.annotation.tool_waits import WatchedTools
from tools_service.contract.tool import ToolInput, ToolResult

pytestmark = pytest.mark.unit


class SlowTools:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()

    def call(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        return [ToolResult(result=f"{tool} {one.text}") for one in inputs]

    async def acall(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        await self.may_answer.wait()
        return self.call(tool, inputs)


@pytest.mark.parametrize("cancelled", [False, True])
def test_waits_are_those_without_an_answer(cancelled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool_waits, "_SHORT_S", 0.0)

    async def run() -> None:
        slow = SlowTools()
        tools = WatchedTools(slow)
        calls = [ToolInput("1"), ToolInput("2")]
        asked = asyncio.create_task(tools.acall("T", calls))
        await asyncio.sleep(0.01)
        [wait] = tools.waits()
        assert (wait.tool, wait.calls) == ("T", 2)
        assert wait.seconds > 0
        if cancelled:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        else:
            slow.may_answer.set()
            assert await asked == tools.call("T", calls)
        assert tools.waits() == ()

    asyncio.run(run())


def test_short_waits_are_usual() -> None:
    async def run() -> None:
        tools = WatchedTools(SlowTools())
        asked = asyncio.create_task(tools.acall("T", [ToolInput("1")]))
        await asyncio.sleep(0.01)
        assert tools.waits() == ()
        asked.cancel()

    asyncio.run(run())
