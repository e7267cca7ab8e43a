"""Which calls of this process have had no answer for a while.

`WatchedTools` stands between an annotator and its client of the tools, and changes nothing. In: the lists
of calls. Out: `waits`, which the process reports (actor_reports.py) and stall.py reads.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from pipeline.annotation.stall import ToolWait
from tools_service.contract.tool import ToolInput, ToolResult
from tools_service.tools.client import ToolClient

_SHORT_S = 5.0  # waits up to this are usual


class WatchedTools:
    """A client that remembers which lists of calls it waits for."""

    def __init__(self, tools: ToolClient) -> None:
        self._tools = tools
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[str, int, float]] = {}  # tool, calls, when they were sent

    def call(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """As the client's."""
        return self._tools.call(tool, inputs)

    async def acall(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """As the client's."""
        number = next(self._numbers)
        self._waiting[number] = tool, len(inputs), time.monotonic()
        try:
            return await self._tools.acall(tool, inputs)
        finally:
            del self._waiting[number]

    def waits(self) -> tuple[ToolWait, ...]:
        """The lists that have waited for some seconds. Any thread may call."""
        now = time.monotonic()
        waits = [ToolWait(tool, calls, now - sent) for tool, calls, sent in list(self._waiting.values())]
        return tuple(wait for wait in waits if wait.seconds > _SHORT_S)
