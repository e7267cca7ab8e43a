"""The seconds of an annotator by state, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bench.fixtures import small_run
from pipeline.method.utilization import UtilizationClock

pytestmark = pytest.mark.unit


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_busiest_phase_of_overlapping_batches_counts() -> None:
    clock = Clock()
    utilization = UtilizationClock(clock)
    clock.now += 50  # before the first batch: not counted
    with utilization.phase("other"):
        clock.now += 1
        with utilization.phase("tools"):
            clock.now += 2
            with utilization.phase("other"), utilization.phase("model"):  # of another batch
                clock.now += 4
            clock.now += 8
    clock.now += 16
    assert utilization.take() == {"model": 4, "tools": 10, "other": 1, "texts": 16}


def test_each_second_is_taken_once() -> None:
    clock = Clock()
    utilization = UtilizationClock(clock)
    with utilization.phase("model"):
        clock.now += 3
        assert utilization.take()["model"] == 3
        clock.now += 2
    assert utilization.take() == {"model": 2, "tools": 0, "other": 0, "texts": 0}


def test_a_phase_that_fails_has_ended() -> None:
    clock = Clock()
    utilization = UtilizationClock(clock)
    with pytest.raises(ValueError, match="a fault"), utilization.phase("model"):
        raise ValueError("a fault")
    clock.now += 1
    assert utilization.take()["texts"] == 1


def test_an_annotator_counts_model_and_tools(tmp_path: Path) -> None:
    annotator = small_run.local_annotator(small_run.write_prompts(tmp_path))
    ask = annotator._tools.acall

    async def slow(*arguments: object) -> object:
        await asyncio.sleep(0.2)
        return await ask(*arguments)  # type: ignore[arg-type]

    annotator._tools.acall = slow  # type: ignore[method-assign, assignment]
    annotator.annotate(small_run.texts(2))
    seconds = annotator.utilization.take()
    assert seconds["tools"] >= 0.2
    assert seconds["model"] > 0
