"""The batch of every optimizer step, as each worker sees it (paper section 4.1, Appendix B).

In: the examples, the sizes, the seed and a rank. Out: for each step the micro-batches of that worker,
as padded arrays. All of this is a function of (data, sizes, seed, step), so a resumed run finds its
data by the step number. This module knows no model and no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.examples import Examples, Indices

IGNORED = -100  # label of a position without a prediction: torch's cross entropy leaves it out


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The rows of one forward pass: R rows of T tokens."""

    ids: Indices  # [R, T], padded on the right
    labels: Indices  # [R, T]: labels[r, t] is ids[r, t + 1], or IGNORED
    text_ids: tuple[tuple[int, ...], ...]  # [R]: the texts in each row
    segments: Indices | None = None  # [R, T]: number of the example within its row; None: one a row


@dataclass(frozen=True, slots=True)
class StepBatch:
    """What one worker computes in an optimizer step."""

    micro_batches: tuple[MicroBatch, ...]  # as many on every worker
    predicted_tokens: int  # labels that count, over all workers


class Batches(Protocol):
    """The training data of one worker."""

    def batch(self, step: int) -> StepBatch:
        """The batch of optimizer step `step`, counted from 1."""
        ...


class IndexedBatches:
    """Batches from examples that the worker can open by their index."""

    def __init__(self, examples: Examples, config: FinetuneConfig, rank: int) -> None:
        self.examples, self.config, self.rank = examples, config, rank
        self.sampler = EpochSampler(len(examples), config.batch_size, config.seed)

    def batch(self, step: int) -> StepBatch:
        """The batch of optimizer step `step`, counted from 1."""
        examples, config = self.examples, self.config
        indices = self.sampler.batch(step - 1)
        of_workers = micro_batches(indices, examples.lengths, config.workers, config.micro_batch_size)
        own = of_workers[:, self.rank]  # [accumulation, micro_batch_size]
        return StepBatch(
            tuple(micro_batch(examples, indices) for indices in own), examples.predicted_tokens(indices)
        )


def micro_batch(examples: Examples, indices: Indices) -> MicroBatch:
    """These examples, one a row."""
    ids, labels = pad([examples[index] for index in indices])
    return MicroBatch(ids, labels, tuple((text_id,) for text_id in examples.text_ids[indices].tolist()))


@dataclass(frozen=True, slots=True)
class EpochSampler:
    """The examples of every step: one seeded permutation of all examples after another."""

    examples: int
    batch_size: int
    seed: int

    def batch(self, step: int) -> Indices:
        """The examples of one optimizer step, counted from 0: [batch_size]."""
        epoch, start = divmod(step * self.batch_size, self.examples)
        # A batch may reach into the next epoch.
        two_epochs = [_permutation(self.examples, self.seed, epoch + i) for i in range(2)]
        return np.concatenate(two_epochs)[start : start + self.batch_size]


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> Indices:
    return np.random.default_rng((seed, 1, epoch)).permutation(size)


def micro_batches(indices: Indices, lengths: Indices, workers: int, micro_batch_size: int) -> Indices:
    """Split a batch, [accumulation, workers, micro_batch_size]; similar lengths stay together."""
    by_length = indices[np.argsort(lengths[indices], kind="stable")]
    return by_length.reshape(-1, workers, micro_batch_size)


def pad(sequences: Sequence[NDArray[np.int32]]) -> tuple[Indices, Indices]:
    """Token ids and labels, both [B, T], padded on the right. labels[b, t] is ids[b, t + 1]."""
    width = max(2, *map(len, sequences))
    ids = np.zeros((len(sequences), width), dtype=np.int64)
    labels = np.full((len(sequences), width), IGNORED, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        labels[row, : len(sequence) - 1] = sequence[1:]
    return ids, labels
