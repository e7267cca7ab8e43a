"""The best checkpoint, and the early stop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.evaluation.choice import best_of, should_stop
from pipeline.finetuning.watching.metrics_log import HeldOutEvaluation
from tests.pipeline.finetuning.inputs import configuration

pytestmark = pytest.mark.unit


def evaluations(*plain_losses: float, with_calls: tuple[float, ...] | None = None) -> list[HeldOutEvaluation]:
    """At steps 0, 10, 20, …; `with_calls` are the losses on C*."""
    losses = with_calls or plain_losses
    return [
        HeldOutEvaluation(10 * number, loss, 9, plain, 7)
        for number, (plain, loss) in enumerate(zip(plain_losses, losses, strict=True))
    ]


def config(**overrides: Any) -> FinetuneConfig:
    return configuration(Path("folder"), **overrides)


def test_each_criterion_chooses_by_its_own_loss() -> None:
    run = evaluations(2.0, 1.5, 1.6, 1.7, with_calls=(4.0, 3.0, 2.0, 1.0))
    perplexity, loss = best_of(run, "perplexity"), best_of(run, "loss")
    assert perplexity is not None
    assert loss is not None
    assert (perplexity.step, loss.step) == (10, 30)


def test_of_equal_ones_the_earlier_step_is_chosen_in_any_order() -> None:
    run = evaluations(2.0, 1.5, 1.4, 1.4)
    assert best_of(run, "perplexity") == best_of(run[::-1], "perplexity") == run[2]


def test_the_model_before_training_is_never_chosen() -> None:
    run = evaluations(1.0, 1.5, 1.4)
    assert best_of(run, "perplexity") == run[2]
    assert best_of(run[:1], "perplexity") is None
    assert best_of([], "loss") is None


def test_losses_whose_perplexity_overflows_are_still_ordered() -> None:
    run = evaluations(900.0, 850.0, 800.0)
    assert math.isinf(run[1].perplexity)
    assert best_of(run, "perplexity") == run[2]


def test_with_evaluations_of_an_earlier_version_the_loss_chooses_among_all() -> None:
    old = [HeldOutEvaluation(10, 1.0, 9), HeldOutEvaluation(20, 0.5, 9)]
    assert best_of(old, "perplexity") == old[1]
    new = HeldOutEvaluation(30, 2.0, 9, 3.0, 7)
    assert best_of([*old, new], "perplexity") == old[1]
    assert best_of([*old, new], "loss") == old[1]


def test_a_run_stops_after_so_many_evaluations_without_a_better_one() -> None:
    run = evaluations(0.5, 1.5, 1.4, 1.6, 1.4, 1.3)
    stops = {
        patience: [should_stop(run[: n + 1], config(patience=patience)) for n in range(len(run))]
        for patience in (1, 2, 3)
    }
    assert stops == {
        1: [False, False, False, True, True, False],
        2: [False, False, False, False, True, False],
        3: [False] * 6,
    }, "step 0 is no result, and an equal one is not better"
    assert not any(should_stop(run[: n + 1], config(patience=None)) for n in range(len(run)))


def test_the_criterion_of_the_early_stop_is_that_of_the_choice() -> None:
    run = evaluations(2.0, 1.0, 1.1, 1.2, with_calls=(4.0, 3.0, 2.0, 1.0))
    assert should_stop(run, config(patience=2, select_by="perplexity"))
    assert not should_stop(run, config(patience=2, select_by="loss"))
