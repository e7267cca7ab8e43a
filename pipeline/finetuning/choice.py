"""Which checkpoint is the best, and when to stop (paper section 4.1, Appendix B).

In: the evaluations of a run. Out: the best one by `select_by`, and whether it was too long ago. The model
before training (step 0) is never a result. This module knows no model and no Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.base.finetune_config import FinetuneConfig, SelectBy
from pipeline.finetuning.metrics_log import HeldOutEvaluation

SCORES: dict[SelectBy, str] = {"perplexity": "plain_loss", "loss": "held_out_loss"}
"""The value that is compared, by `select_by`: nats per token. A loss orders as its perplexity does, and
stays finite where the perplexity overflows."""


def best_of(evaluations: Iterable[HeldOutEvaluation], select_by: SelectBy) -> HeldOutEvaluation | None:
    """The evaluation of the best checkpoint, of equal ones the earliest; None if there is none after step 0.

    Evaluations of earlier versions, which lack plain_loss, come after those that have it.
    """

    def order(evaluation: HeldOutEvaluation) -> tuple[bool, float, int]:
        value = getattr(evaluation, SCORES[select_by])
        return value is None, evaluation.held_out_loss if value is None else value, evaluation.step

    return min((evaluation for evaluation in evaluations if evaluation.step), key=order, default=None)


def should_stop(evaluations: Sequence[HeldOutEvaluation], config: FinetuneConfig) -> bool:
    """Whether the last `patience` evaluations were all no better than one before them.

    `evaluations` are those of the whole run, in the order of their steps.
    """
    best = best_of(evaluations, config.select_by)
    if config.patience is None or best is None:
        return False
    return sum(evaluation.step > best.step for evaluation in evaluations) >= config.patience
