"""What the tools do in a second, each class alone and through the service, side by side in one run.

    python -m bench.tools [--tools Calculator MT] [--seconds 5]

The tools are the demo's (recipe, models, encyclopedia), asked what the demo's pages would ask. For
lists of 1, 64 and 512: items/s, and the latency of a list at the median and the 99th percentile. A list to
the class and a list through the service, in turns, so that a busy machine is busy for both; one caller, no
cache, one thread. Also: the share of its throughput that a tool loses to the service, and the slowest of the
hostile inputs of the calculator. Out: a table, and runs/bench/tools.json.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import Any

from bench import results
from bench.fixtures.hostile_expressions import REASONS, VALUES
from pipeline.cli.recipes import demo
from tools_service.config import ToolsConfig
from tools_service.serving.deployment import tools_on_ray
from tools_service.tools.calculator import Calculator
from tools_service.tools.client import ToolClient
from tools_service.tools.contract import TOOL_NAMES, TRANSIENT, Tool, ToolInput, answer
from tools_service.tools.registry import load_tool

SIZES = (1, 64, 512)
MODEL_TOOLS = ("QA", "MT")
MOST_LOST = 0.30  # of a model tool's throughput, by the service, in the longest lists
LEAST_LISTS = 5


@dataclass(frozen=True)
class Measured:
    """One tool, asked in one way with lists of one size."""

    tool: str
    way: str
    list_size: int
    lists: int
    items_per_s: float
    p50_ms: float
    p99_ms: float

    @staticmethod
    def of(tool: str, way: str, size: int, seconds: Sequence[float]) -> Measured:
        """From the time that each list took."""
        ordered = sorted(seconds)
        return Measured(
            tool=tool,
            way=way,
            list_size=size,
            lists=len(ordered),
            items_per_s=round(size * len(ordered) / sum(ordered), 1),
            p50_ms=round(1e3 * ordered[math.ceil(0.50 * len(ordered)) - 1], 3),
            p99_ms=round(1e3 * ordered[math.ceil(0.99 * len(ordered)) - 1], 3),
        )


def in_turns(ways: Sequence[Callable[[int], object]], seconds: float) -> list[list[float]]:
    """How long each call took of each of `ways`, called in turns with 0, 1, … for `seconds` each."""
    for way in ways:
        way(0)  # what is done once is not measured
    took: list[list[float]] = [[] for _ in ways]
    for number in itertools.count():
        if number >= LEAST_LISTS and sum(map(sum, took)) > seconds * len(ways):
            break
        for way, times in zip(ways, took, strict=True):
            began = time.perf_counter()
            way(number)
            times.append(time.perf_counter() - began)
    return took


def inputs_of(tool: str, count: int) -> list[ToolInput]:
    """`count` different inputs like those of the demo's pages; spaces tell the same ones apart."""
    from demo import generate

    if tool == "Calendar":
        return [ToolInput("", (date(2000, 1, 1) + timedelta(days=n)).isoformat()) for n in range(count)]
    calls = (call.input for made in generate.truth().values() for call in made.calls if call.tool == tool)
    known = list(dict.fromkeys(calls))
    return [ToolInput(known[n % len(known)] + " " * (n // len(known))) for n in range(count)]


def measure(tool: Tool, client: ToolClient, seconds: float) -> Iterator[Measured]:
    """One tool in both ways, with lists of every size."""
    inputs = inputs_of(tool.name, 2 * max(SIZES))
    for size in SIZES:
        parts = [inputs[start : start + size] for start in range(0, len(inputs), size)]

        def alone(number: int, parts: list[list[ToolInput]] = parts) -> object:
            return answer(tool, parts[number % len(parts)])

        def through_service(number: int, parts: list[list[ToolInput]] = parts) -> object:
            answers = client.call(tool.name, parts[number % len(parts)])
            lost = {one.reason for one in answers} & TRANSIENT
            assert not lost, f"{tool.name}: {lost}"
            return answers

        took = in_turns([alone, through_service], seconds)
        for way, times in zip(("class", "service"), took, strict=True):
            yield Measured.of(tool.name, way, size, times)


def lost(measured: Sequence[Measured]) -> dict[str, float]:
    """Share of a tool's throughput that the service costs, in the longest lists."""
    rates = {(one.tool, one.way): one.items_per_s for one in measured if one.list_size == max(SIZES)}
    tools = dict.fromkeys(tool for tool, _ in rates)
    return {tool: round(1 - rates[tool, "service"] / rates[tool, "class"], 3) for tool in tools}


def slowest_hostile() -> tuple[float, str]:
    """Milliseconds of the hostile expression that takes the calculator longest (the best of five times)."""
    calculator = Calculator()

    def milliseconds(expression: str) -> float:
        took = []
        for _ in range(5):
            began = time.perf_counter()
            calculator([ToolInput(expression)])
            took.append(time.perf_counter() - began)
        return 1e3 * min(took)

    hostile = [*itertools.chain.from_iterable(REASONS.values()), *VALUES]
    return max((round(milliseconds(one), 3), one[:40]) for one in hostile)


def uncached(config: ToolsConfig) -> ToolsConfig:
    """`config` for measuring: every call is answered anew, and nobody gives up early."""
    sections: dict[str, Any] = {}
    for tool in TOOL_NAMES:
        section = config.of(tool)
        patient = section.deployment.model_copy(update={"deadline_s": 600.0, "list_size": max(SIZES)})
        sections[tool.lower()] = section.model_copy(update={"deployment": patient})
    return config.model_copy(update={"cache_size": 0, **sections})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure the tools alone and through the service.")
    parser.add_argument("--tools", nargs="+", choices=TOOL_NAMES, default=TOOL_NAMES)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each tool, way and list size")
    arguments = parser.parse_args()
    import ray
    import torch

    torch.set_num_threads(1)  # as in a replica that reserves a share of a CPU
    config = uncached(demo().generate.tools)
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    measured: list[Measured] = []
    with tools_on_ray(config, arguments.tools) as client:
        print(f"{'tool':<11}{'way':<9}{'list':>5}{'lists':>7}{'items/s':>12}{'p50 ms':>11}{'p99 ms':>11}")
        for name in arguments.tools:
            for one in measure(load_tool(name, config), client, arguments.seconds):
                measured.append(one)
                print(
                    f"{one.tool:<11}{one.way:<9}{one.list_size:>5}{one.lists:>7}"
                    f"{one.items_per_s:>12,.1f}{one.p50_ms:>11,.2f}{one.p99_ms:>11,.2f}",
                    flush=True,
                )
    ray.shutdown()
    shares, (slowest_ms, slowest) = lost(measured), slowest_hostile()
    for tool, share in shares.items():
        bar = f" (at most {MOST_LOST:.0%})" if tool in MODEL_TOOLS else ""
        print(f"{tool}: the service costs {share:.1%} of the throughput in lists of {max(SIZES)}{bar}")
    print(f"the calculator's slowest hostile input takes {slowest_ms} ms: {slowest!r}")
    summary = {"lost": shares, "slowest_hostile_ms": slowest_ms, "lists": [asdict(one) for one in measured]}
    print(results.write("tools", config.model_dump(mode="json"), summary))


if __name__ == "__main__":
    main()
