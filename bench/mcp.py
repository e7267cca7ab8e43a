"""Calls per second of a tool of an MCP server through Ray Serve, beside the bare SDK client.

    python -m bench.mcp [--sessions 2] [--seconds 10] [--callers 1 4]

The server (bench/fixtures/mcp_server.py) is written with the SDK and speaks on its standard streams. The
bare client has as many sessions, each with a server of its own, as the tool's replica, and spreads the same
lists of 64 calls over them. Lists go both ways alternately, so that a busy machine slows both down. There is
no cache. Then 1,000 calls are made while a server is killed three times: each has a result or a reason
within its deadline. Out: a table, and runs/bench/mcp.json; exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
from mcp import Client, StdioServerParameters

from bench import results
from tools_service.config import ToolsConfig
from tools_service.contract.spec import ToolSpec
from tools_service.contract.tool import ToolInput
from tools_service.serving.deployment import tools_on_ray
from tools_service.tools.client import ToolClient

LIST = 64
BAR = 0.80
CALLS, KILLS, DEADLINE_S = 1_000, 3, 30.0
SERVER = "bench.fixtures.mcp_server"
COMMAND = (sys.executable, "-m", SERVER)

AnswerList = Callable[[int], Awaitable[object]]


def tools_config(sessions: int) -> ToolsConfig:
    """One tool, Double, whose replica has `sessions`."""
    settings: dict[str, Any] = {
        "command": COMMAND,
        "tool": "double",
        "env": ("PYTHONPATH",),
        "sessions": sessions,
        "deployment": {"deadline_s": DEADLINE_S},
    }
    spec = ToolSpec(name="Double", implementation="tools_service.remote.mcp:McpTool", settings=settings)
    return ToolsConfig(declared=(spec,), cache_size=0)


async def rates(ways: dict[str, AnswerList], callers: int, seconds: float) -> dict[str, float]:
    """Calls per second each way, with `callers` lists at a time; the ways alternate in parts of a tenth."""
    elapsed_s = dict.fromkeys(ways, 0.0)
    lists: collections.Counter[str] = collections.Counter()
    for way, answer in itertools.islice(itertools.cycle(ways.items()), 10 * len(ways)):

        async def ask(way: str = way, answer: AnswerList = answer, end: float = 0.0) -> None:
            while time.perf_counter() < end:
                await answer(LIST)
                lists[way] += 1

        began = time.perf_counter()
        await asyncio.gather(*(ask(end=began + seconds / 10) for _ in range(callers)))
        elapsed_s[way] += time.perf_counter() - began
    return {way: LIST * lists[way] / elapsed_s[way] for way in ways}


async def compare(
    client: ToolClient, sessions: int, callers: list[int], seconds: float
) -> list[dict[str, Any]]:
    """The rates of both ways for each number of callers."""
    async with AsyncExitStack() as stack:
        parameters = StdioServerParameters(
            command=COMMAND[0], args=list(COMMAND[1:]), env={"PYTHONPATH": os.environ["PYTHONPATH"]}
        )
        clients = [await stack.enter_async_context(Client(parameters)) for _ in range(sessions)]
        for bare in clients:
            await bare.list_tools()
        round_robin = itertools.cycle(clients)

        async def by_sdk(count: int) -> object:
            answers = await asyncio.gather(
                *(next(round_robin).call_tool("double", {"number": number}) for number in range(count))
            )
            assert not any(answer.is_error for answer in answers)
            return answers

        async def by_serve(count: int) -> object:
            answers = await client.acall("Double", [ToolInput(str(number)) for number in range(count)])
            assert all(answer.result for answer in answers)
            return answers

        ways: dict[str, AnswerList] = {"sdk": by_sdk, "serve": by_serve}
        await rates(ways, 1, 1.0)  # warm-up
        return [{"callers": number, **await rates(ways, number, seconds)} for number in callers]


def survive(client: ToolClient) -> dict[str, Any]:
    """Make calls while servers are killed; answers by kind, and the longest wait for a list."""
    kinds: collections.Counter[str] = collections.Counter()
    killed: list[int] = []
    longest_s = 0.0
    starts = range(0, CALLS, LIST)
    for place, start in enumerate(starts):
        numbers = range(start, min(start + LIST, CALLS))
        if place % (len(starts) // (KILLS + 1)) == 1 and len(killed) < KILLS:
            threading.Timer(0.01, lambda: killed.append(kill_a_server())).start()
        began = time.perf_counter()
        answers = client.call("Double", [ToolInput(str(number)) for number in numbers])
        longest_s = max(longest_s, time.perf_counter() - began)
        for number, answer in zip(numbers, answers, strict=True):
            kinds["right" if answer.result == str(2 * number) else str(answer.reason)] += 1
    return {"killed": len(killed), "longest_s": round(longest_s, 3), "answers": dict(kinds)}


def kill_a_server() -> int:
    """Kill one of the servers that this process's Ray runs; return its id."""
    while True:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if SERVER in process.cmdline():
                    os.kill(process.pid, signal.SIGKILL)
                    return process.pid


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure a tool of an MCP server through Ray Serve.")
    parser.add_argument("--sessions", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="each way, for each number of callers")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 4], help="lists at a time")
    args = parser.parse_args()
    import ray

    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # where the servers find their module
    config = tools_config(args.sessions)
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    with tools_on_ray(config, ["Double"]) as client:
        rows = asyncio.run(compare(client, args.sessions, args.callers, args.seconds))
        survived = survive(client)
    ray.shutdown()
    for row in rows:
        row["share"] = row["serve"] / row["sdk"]
        print(
            "{callers} at a time: SDK {sdk:,.0f} calls/s, Serve {serve:,.0f} calls/s: {share:.0%}".format(
                **row
            )
        )
    print(f"{CALLS:,} calls while servers were killed: {survived}")
    print(results.write("mcp", config.model_dump(mode="json"), {"rates": rows, "killed": survived}))
    holds = all(row["share"] >= BAR for row in rows) and survived["longest_s"] <= DEADLINE_S
    return 0 if holds and survived["killed"] == KILLS else 1


if __name__ == "__main__":
    sys.exit(main())
