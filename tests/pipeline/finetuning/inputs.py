"""A base model and a small C* in files, and fine-tuning in plain torch, for the tests of fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.fixtures.small_training import (
    NAMES,
    base_model,
    configuration,
    load_examples,
    mean_loss,
    plain_torch,
    rows,
    write,
)
from pipeline.finetuning.data.augmented_files import Indices
from pipeline.finetuning.data.examples import ExampleEncoder, Examples

__all__ = [
    "NAMES",
    "base_model",
    "configuration",
    "encode",
    "flat",
    "load_examples",
    "mean_loss",
    "plain_torch",
    "rows",
    "write",
]


def encode(
    words: Any, text_ids: Indices, texts: Sequence[str], length: int, plain: Sequence[str] | None = None
) -> Examples:
    """The examples of these texts, whose calls are those that `plain` does not have."""
    return ExampleEncoder(words, length, ()).batch(text_ids, texts, plain or texts)


def flat(examples: Examples) -> list[int]:
    """All tokens, one example after another."""
    return [int(token) for index in range(len(examples)) for token in examples[index]]
