"""Which checkpoint is the best, and when to stop (paper section 4.1, Appendix B).

In: the evaluations of a run. Out: the best one by `select_by`, and the number of evaluations since. The
model before training (step 0) is never a result. This module knows no model and no Ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pipeline.base.finetune_config import FinetuneConfig, SelectBy
from pipeline.finetuning.metrics_log import HeldOutEvaluation

SCORES: dict[SelectBy, str] = {"perplexity": "plain_loss", "loss": "held_out_loss"}
"""The value that is compared, by `select_by`: nats per token. A loss orders as its perplexity does, and
stays finite where the perplexity overflows."""


def score(evaluation: HeldOutEvaluation, select_by: SelectBy) -> float:
    """Nats per token, lower is better; infinite where an earlier version did not measure it."""
    value: float | None = getattr(evaluation, SCORES[select_by])
    return math.inf if value is None else value


def better(a: HeldOutEvaluation, b: HeldOutEvaluation, select_by: SelectBy) -> bool:
    """Whether `a` is chosen before `b`; of equal ones, the earlier step is."""
    return (score(a, select_by), a.step) < (score(b, select_by), b.step)


def best_of(evaluations: Iterable[HeldOutEvaluation], select_by: SelectBy) -> HeldOutEvaluation | None:
    """The evaluation of the best checkpoint; None if there is none after step 0."""
    trained = (evaluation for evaluation in evaluations if evaluation.step)
    return min(trained, key=lambda evaluation: (score(evaluation, select_by), evaluation.step), default=None)


def should_stop(evaluations: Sequence[HeldOutEvaluation], config: FinetuneConfig) -> bool:
    """Whether the last `patience` evaluations were all no better than one before them.

    `evaluations` are those of the whole run, in the order of their steps.
    """
    best = best_of(evaluations, config.select_by)
    if config.patience is None or best is None:
        return False
    return sum(evaluation.step > best.step for evaluation in evaluations) >= config.patience
