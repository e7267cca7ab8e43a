"""The benchmark of the tools: its arithmetic, and inputs as they are in the demo."""

from __future__ import annotations

import pytest

from bench.tools import Measured, in_turns, inputs_of, lost, slowest_hostile, uncached
from pipeline.cli.recipes import demo
from tools_service.tools.contract import TOOL_NAMES

pytestmark = pytest.mark.unit


def test_rates_and_percentiles() -> None:
    measured = Measured.of("MT", "class", 10, [0.1] * 98 + [0.2, 0.3])
    assert measured.items_per_s == round(1_000 / 10.3, 1)
    assert (measured.p50_ms, measured.p99_ms, measured.lists) == (100.0, 200.0, 100)


def test_both_ways_are_asked_the_same_in_turns() -> None:
    asked: list[tuple[str, int]] = []
    took = in_turns([lambda n: asked.append(("a", n)), lambda n: asked.append(("b", n))], seconds=0.0)
    assert asked[:4] == [("a", 0), ("b", 0), ("a", 0), ("b", 0)]
    assert asked[4:] == [(way, n) for n in range(1, len(took[0])) for way in "ab"]
    assert len(took[0]) == len(took[1]) >= 5


def test_what_the_service_costs_is_a_share_of_the_class_in_the_longest_lists() -> None:
    rates = [("class", 64, 9.0), ("service", 64, 1.0), ("class", 512, 10.0), ("service", 512, 8.0)]
    measured = [Measured("MT", way, size, 1, rate, 0.0, 0.0) for way, size, rate in rates]
    assert lost(measured) == {"MT": 0.2}


@pytest.mark.parametrize("tool", TOOL_NAMES)
def test_inputs_are_the_demos_and_all_different(tool: str) -> None:
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
