"""Throughput and latency of the tools, each class by itself and through the service.

    python -m bench.tools [--tools Calculator MT] [--seconds 5]

The tools are the demo's (recipe, models, encyclopedia), and the inputs are like those of its pages.
Reported for lists of 1, 64 and 512 inputs: items/s, and the latency of a list at the median and the
99th percentile. Lists go to the class and through the service alternately, so that a busy machine
slows both down. There is one caller, no cache, one thread. Also reported: the share of its
throughput that each tool loses to the service, and the hostile input that takes the calculator
longest. Out: a table, and runs/bench/tools.json.
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
from tools_service.contract.declarations import PACKAGED
from tools_service.contract.tool import TRANSIENT, Tool, ToolInput, answer
from tools_service.serving.deployment import tools_on_ray
from tools_service.tools.calculator import Calculator
from tools_service.tools.client import ToolClient
from tools_service.tools.registry import load_tool

SIZES = (1, 64, 512)
MODEL_TOOLS = ("QA", "MT")
MAX_OVERHEAD = 0.30  # share of a model tool's throughput that the service may cost in the longest lists
MIN_LISTS = 5


@dataclass(frozen=True)
class Timing:
    """One tool, called in one way ("class" or "service") with lists of one size."""

    tool: str
    way: str
    list_size: int
    lists: int
    items_per_s: float
    p50_ms: float
    p99_ms: float

    @staticmethod
    def of(tool: str, way: str, size: int, seconds: Sequence[float]) -> Timing:
        """From the time that each list took."""
        ordered = sorted(seconds)
        return Timing(
            tool=tool,
            way=way,
            list_size=size,
            lists=len(ordered),
            items_per_s=round(size * len(ordered) / sum(ordered), 1),
            p50_ms=round(1e3 * ordered[math.ceil(0.50 * len(ordered)) - 1], 3),
            p99_ms=round(1e3 * ordered[math.ceil(0.99 * len(ordered)) - 1], 3),
        )


def time_alternately(functions: Sequence[Callable[[int], object]], seconds: float) -> list[list[float]]:
    """Call each of `functions` in turn with 0, 1, … for `seconds` each; the time of every call."""
    for function in functions:
        function(0)  # warm-up
    times: list[list[float]] = [[] for _ in functions]
    for number in itertools.count():
        if number >= MIN_LISTS and sum(map(sum, times)) > seconds * len(functions):
            break
        for function, of_function in zip(functions, times, strict=True):
            began = time.perf_counter()
            function(number)
            of_function.append(time.perf_counter() - began)
    return times


def inputs_of(tool: str, count: int) -> list[ToolInput]:
    """`count` inputs like those of the demo's pages, made distinct by trailing spaces."""
    from demo import generate

    if tool == "Calendar":
        return [ToolInput("", (date(2000, 1, 1) + timedelta(days=n)).isoformat()) for n in range(count)]
    pages = generate.ground_truth().values()
    known = list(dict.fromkeys(call.input for page in pages for call in page.calls if call.tool == tool))
    return [ToolInput(known[n % len(known)] + " " * (n // len(known))) for n in range(count)]


def measure(tool: Tool, client: ToolClient, seconds: float) -> Iterator[Timing]:
    """One tool in both ways, with lists of every size."""
    inputs = inputs_of(tool.name, 2 * max(SIZES))
    for size in SIZES:
        lists = [inputs[start : start + size] for start in range(0, len(inputs), size)]

        def by_class(number: int, lists: list[list[ToolInput]] = lists) -> object:
            return answer(tool, lists[number % len(lists)])

        def by_service(number: int, lists: list[list[ToolInput]] = lists) -> object:
            answers = client.call(tool.name, lists[number % len(lists)])
            lost = {result.reason for result in answers} & TRANSIENT
            assert not lost, f"{tool.name}: {lost}"
            return answers

        times = time_alternately([by_class, by_service], seconds)
        for way, of_way in zip(("class", "service"), times, strict=True):
            yield Timing.of(tool.name, way, size, of_way)


def overheads(timings: Sequence[Timing]) -> dict[str, float]:
    """The share of each tool's throughput that the service costs, in the longest lists."""
    longest = [timing for timing in timings if timing.list_size == max(SIZES)]
    rates = {(timing.tool, timing.way): timing.items_per_s for timing in longest}
    tools = dict.fromkeys(tool for tool, _ in rates)
    return {tool: round(1 - rates[tool, "service"] / rates[tool, "class"], 3) for tool in tools}


def slowest_hostile() -> tuple[float, str]:
    """Milliseconds (the best of five runs) of the slowest hostile expression."""
    calculator = Calculator()

    def milliseconds(expression: str) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            calculator([ToolInput(expression)])
            times.append(time.perf_counter() - began)
        return 1e3 * min(times)

    hostile = [*itertools.chain.from_iterable(REASONS.values()), *VALUES]
    return max((round(milliseconds(expression), 3), expression[:40]) for expression in hostile)


def uncached(config: ToolsConfig) -> ToolsConfig:
    """`config` for measuring: no cache, and deadlines that no call misses."""
    sections: dict[str, Any] = {}
    for tool in PACKAGED:
        section = config.of(tool)
        patient = section.deployment.model_copy(update={"deadline_s": 600.0, "list_size": max(SIZES)})
        sections[tool.lower()] = section.model_copy(update={"deployment": patient})
    return config.model_copy(update={"cache_size": 0, **sections})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure the tools alone and through the service.")
    parser.add_argument("--tools", nargs="+", choices=PACKAGED, default=PACKAGED)
    parser.add_argument("--seconds", type=float, default=5.0, help="per tool, way and list size")
    args = parser.parse_args()
    import ray
    import torch

    torch.set_num_threads(1)  # as in a replica that reserves a share of a CPU
    config = uncached(demo().generate.tools)
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    timings: list[Timing] = []
    with tools_on_ray(config, args.tools) as client:
        print(f"{'tool':<11}{'way':<9}{'list':>5}{'lists':>7}{'items/s':>12}{'p50 ms':>11}{'p99 ms':>11}")
        for name in args.tools:
            for timing in measure(load_tool(name, config), client, args.seconds):
                timings.append(timing)
                print(
                    f"{timing.tool:<11}{timing.way:<9}{timing.list_size:>5}{timing.lists:>7}"
                    f"{timing.items_per_s:>12,.1f}{timing.p50_ms:>11,.2f}{timing.p99_ms:>11,.2f}",
                    flush=True,
                )
    ray.shutdown()
    shares, (slowest_ms, slowest) = overheads(timings), slowest_hostile()
    for tool, share in shares.items():
        limit = f" (at most {MAX_OVERHEAD:.0%})" if tool in MODEL_TOOLS else ""
        print(f"{tool}: the service costs {share:.1%} of the throughput in lists of {max(SIZES)}{limit}")
    print(f"the calculator's slowest hostile input takes {slowest_ms} ms: {slowest!r}")
    summary = {"lost": shares, "slowest_hostile_ms": slowest_ms, "lists": list(map(asdict, timings))}
    print(results.write("tools", config.model_dump(mode="json"), summary))


if __name__ == "__main__":
    main()
