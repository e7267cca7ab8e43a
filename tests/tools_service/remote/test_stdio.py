"""The process of an MCP server ends with its session, however the session ends."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

import psutil
import pytest

from tools_service.remote.stdio import ServerProcess

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("cancels", [1, 2, 3])
def test_a_session_that_is_cancelled_while_it_ends_leaves_no_process(cancels: int) -> None:
    async def end() -> bool:
        """Whether the server may still run after its session, which is cancelled `cancels` times."""
        opened = asyncio.Event()
        server = ServerProcess((sys.executable, "-c", "import time; time.sleep(60)"), {}, 1_000, opened.set)

        async def session() -> None:
            async with server.connect():
                opened.set()
                await asyncio.sleep(60)

        running = asyncio.create_task(session())
        await opened.wait()
        (process,) = (each for each in psutil.Process().children() if each.pid == server._group)
        for _ in range(cancels):
            running.cancel()
            await asyncio.sleep(0.05)  # within the grace period
        with suppress(asyncio.CancelledError):
            await running
        return process.is_running() or server._group is not None

    assert not asyncio.run(end())
