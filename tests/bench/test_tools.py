"""The benchmark of the tools: its arithmetic and its inputs."""

from __future__ import annotations

import pytest

from bench.tools import Timing, inputs_of, overheads, slowest_hostile, time_alternately, uncached
from pipeline.cli.recipes import demo
from tools_service.contract.declarations import PACKAGED

pytestmark = pytest.mark.unit


def test_rates_and_percentiles() -> None:
    timing = Timing.of("MT", "class", 10, [0.1] * 98 + [0.2, 0.3])
    assert timing.items_per_s == round(1_000 / 10.3, 1)
    assert (timing.p50_ms, timing.p99_ms, timing.lists) == (100.0, 200.0, 100)


def test_functions_are_called_alternately_with_the_same_numbers() -> None:
    calls: list[tuple[str, int]] = []
    functions = [lambda n: calls.append(("a", n)), lambda n: calls.append(("b", n))]
    times = time_alternately(functions, seconds=0.0)
    assert calls[:4] == [("a", 0), ("b", 0), ("a", 0), ("b", 0)]
    assert calls[4:] == [(name, n) for n in range(1, len(times[0])) for name in "ab"]
    assert len(times[0]) == len(times[1]) >= 5


def test_the_overhead_is_a_share_of_the_class_in_the_longest_lists() -> None:
    rates = [("class", 64, 9.0), ("service", 64, 1.0), ("class", 512, 10.0), ("service", 512, 8.0)]
    timings = [Timing("MT", way, size, 1, rate, 0.0, 0.0) for way, size, rate in rates]
    assert overheads(timings) == {"MT": 0.2}


@pytest.mark.parametrize("tool", PACKAGED)
def test_inputs_are_distinct(tool: str) -> None:
    inputs = inputs_of(tool, 1_024)
    assert len(set(inputs)) == 1_024


def test_the_slowest_hostile_input_is_named() -> None:
    milliseconds, expression = slowest_hostile()
    assert milliseconds > 0
    assert expression


def test_measuring_changes_only_caches_deadlines_and_lists() -> None:
    config = demo().generate.tools
    measured = uncached(config)
    assert measured.mt.model == config.mt.model
    assert measured.mt.deployment.threads == config.mt.deployment.threads
    assert (measured.cache_size, measured.mt.deployment.list_size) == (0, 512)
