"""The learning rate is a function of the step, by hand and against torch's and transformers' schedulers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from pipeline.finetuning.step.schedule import rate_factor, warmup_steps
from tests.pipeline.finetuning.inputs import configuration

pytestmark = pytest.mark.unit


def rates(steps: int, warmup: int | None = None, **overrides: Any) -> list[float]:
    factor = rate_factor(configuration(Path("folder"), **overrides), warmup)
    return [factor(step) for step in range(steps)]


def test_by_default_the_rate_rises_linearly_and_stays() -> None:
    assert rates(40, max_steps=40, warmup_share=0.1) == [0.25, 0.5, 0.75] + [1.0] * 37
    assert rates(2, max_steps=40, warmup_share=0.0) == [1.0, 1.0]


def test_linear_and_cosine_fall_to_the_least_rate_at_the_end() -> None:
    fall = {"max_steps": 5, "warmup_share": 0.2}
    # One step of warm-up, then four that fall: the fifth value would be the rate of a sixth step.
    assert rates(6, schedule="linear", **fall) == pytest.approx([1, 1, 0.75, 0.5, 0.25, 0])
    assert rates(7, schedule="linear", min_rate_share=0.2, **fall) == pytest.approx(
        [1, 1, 0.8, 0.6, 0.4, 0.2, 0.2]
    )
    root = 0.5**0.5
    assert rates(6, schedule="cosine", **fall) == pytest.approx(
        [1, 1, (1 + root) / 2, 0.5, (1 - root) / 2, 0]
    )


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_fall_is_that_of_transformers(schedule: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    make = get_linear_schedule_with_warmup if schedule == "linear" else get_cosine_schedule_with_warmup
    scheduler = make(optimizer, num_warmup_steps=4, num_training_steps=40)
    theirs = []
    for _ in range(40):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    ours = rates(40, schedule=schedule, max_steps=40, warmup_share=0.1)
    assert ours[4:] == pytest.approx(theirs[4:])
    assert ours[:4] == [0.25, 0.5, 0.75, 1.0]  # theirs begins with a step of rate 0


def test_a_run_that_is_prolonged_keeps_its_warm_up() -> None:
    first = configuration(Path("folder"), max_steps=40, warmup_share=0.1)
    longer = {"max_steps": 400, "warmup_share": 0.1}
    assert rates(40, warmup_steps(first), **longer) == rates(40, max_steps=40, warmup_share=0.1)
    assert rates(40, **longer) != rates(40, max_steps=40, warmup_share=0.1)
    assert rates(1, 400, schedule="cosine", max_steps=4) == [1 / 400]  # a warm-up that is not over


def test_a_least_rate_of_a_constant_schedule_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"min_rate_share = 0\.5, but the rate stays constant"):
        configuration(Path("folder"), min_rate_share=0.5)
