"""A base model and a small C* in files, and fine-tuning in plain torch, for the tests of fine-tuning."""

from __future__ import annotations

from bench.fixtures.small_training import (
    NAMES,
    base_model,
    configuration,
    mean_loss,
    plain_torch,
    rows,
    write,
)
from pipeline.finetuning.examples import Examples

__all__ = ["NAMES", "base_model", "configuration", "flat", "mean_loss", "plain_torch", "rows", "write"]


def flat(examples: Examples) -> list[int]:
    """All tokens, one example after another."""
    return [int(token) for index in range(len(examples)) for token in examples[index]]
