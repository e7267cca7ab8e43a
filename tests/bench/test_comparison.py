"""The numbers of the systems: medians over rounds, speedups and the table."""

from __future__ import annotations

from typing import Any

import pytest

from bench.comparison import Scale, compare_calls, format_row, speedups, table
from bench.systems import SystemRun
from pipeline.base.cost import ModelShape
from pipeline.base.records import Call, Cost

pytestmark = pytest.mark.unit


def run(wall_s: float, peak_mib: float = 1.0) -> SystemRun:
    timing = {"wall_s": wall_s, "cpu_s": 2 * wall_s, "peak_mib": peak_mib}
    return SystemRun("engine", timing, 6, [[], []], {"plus": Cost(100, logits=7)}, 4)


def row(rounds: list[float], rate: float = 1e12) -> dict[str, Any]:
    shape = ModelShape(parameters=10**10, layers=2, heads=1, head_size=4, hidden=4, vocabulary=10)
    scale = Scale([{"plus": Cost(40)}, {"plus": Cost(10)}, {"plus": Cost(1)}], shape)
    return scale.row([run(wall_s, wall_s) for wall_s in rounds], rate)


def test_the_median_round_is_reported() -> None:
    numbers = row([4.0, 1.0, 2.0])
    assert numbers["texts_per_s"] == 1.0
    assert numbers["texts_per_s_by_round"] == [0.5, 2.0, 1.0]
    assert numbers["texts_per_cpu_s"] == 0.5
    assert numbers["peak_mib"] == 4.0
    assert numbers["tokens_per_lower_bound"] == 2.0
    half = row([4.0, 1.0, 2.0], rate=2e12)["share_of_matrix_rate"]
    assert numbers["share_of_matrix_rate"] == pytest.approx(2 * half)


def call(l_plus: float) -> Call:
    return Call("Calculator", 3, 0.5, "1 + 1", "2", l_plus, 2.0, 3.0, 2.0 - l_plus)


def test_kept_calls_are_compared_and_differences_of_losses_found() -> None:
    same = compare_calls([[call(1.0)]], [[call(1.25)]], 0.5)
    assert same["same_kept"]
    assert same["max_loss_difference"] == 0.25
    other = compare_calls([[call(1.0)]], [[call(1.75)]], 0.5)
    assert not other["same_kept"]
    assert other["kept"] == [1, 0]


def test_a_speedup_compares_the_best_numbers_of_processes() -> None:
    rows = [
        {"system": name, "texts_per_s": rate}
        for name, rate in {
            "engine": 4.0,
            "engine, 2 processes": 6.0,
            "vLLM": 3.0,
            "plain procedure": 9.0,
        }.items()
    ]
    assert speedups(rows) == {"vLLM": 2.0, "plain procedure": 0.667}
    assert speedups(rows[:2]) == {}


def test_the_table_has_a_line_for_every_system() -> None:
    comparison = compare_calls([[call(1.0)]], [[call(1.75)]], 0.5)
    systems = [
        row([2.0, 1.0, 4.0]) | {"system": "engine", "compared_with_engine": comparison | {"same_kept": True}},
        row([4.0, 5.0, 3.0]) | {"system": "vLLM, 2 processes", "compared_with_engine": comparison},
    ]
    measured = {"model": "models/smollm2/", "dtype": "bfloat16", "tool": "Calculator", "systems": systems}
    header, engine, vllm = table([measured | {"engine_speedup": speedups(systems)}]).splitlines()
    assert header.split()[:3] == ["model", "data", "type"]
    assert engine.split()[:4] == ["smollm2", "bfloat16", "Calculator", "engine"]
    assert " yes " in engine
    assert "0.500 0.400 0.667  2.00 " in vllm
    assert " NO " in vllm
    assert "NOT THE SAME" in format_row(systems[1])
