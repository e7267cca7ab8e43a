"""Which checkpoint is the best, and when to stop (paper section 4.1, Appendix B).

In: the evaluations of a run. Out: the best one by `select_by`, and whether it was too long ago. The model
before training (step 0) is never a result. This module knows no model and no Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.base.finetune_config import FinetuneConfig, SelectBy
from pipeline.finetuning.watching.metrics_log import HeldOutEvaluation

SCORES: dict[SelectBy, str] = {"perplexity": "plain_loss", "loss": "held_out_loss"}
"""The value that is compared, by `select_by`: nats per token. A loss orders as its perplexity does, and
stays finite where the perplexity overflows."""


def best_of(evaluations: Iterable[HeldOutEvaluation], select_by: SelectBy) -> HeldOutEvaluation | None:
    """The evaluation of the best checkpoint, of equal ones the earliest; None if there is none after step 0.

    A run that an earlier version began has evaluations without plain_loss: then the loss chooses among all.
    """
    trained = [evaluation for evaluation in evaluations if evaluation.step]
    score = SCORES[select_by]
    if any(getattr(evaluation, score) is None for evaluation in trained):
        score = SCORES["loss"]
    return min(trained, key=lambda each: (getattr(each, score), each.step), default=None)


def should_stop(evaluations: Sequence[HeldOutEvaluation], config: FinetuneConfig) -> bool:
    """Whether the last `patience` evaluations were all no better than one before them.

    `evaluations` are those of the whole run, in the order of their steps.
    """
    best = best_of(evaluations, config.select_by)
    if config.patience is None or best is None:
        return False
    return sum(evaluation.step > best.step for evaluation in evaluations) >= config.patience
