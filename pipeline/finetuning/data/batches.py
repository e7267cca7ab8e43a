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

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.data.augmented_files import Indices
from pipeline.finetuning.data.examples import Examples
from pipeline.finetuning.data.packing import Row, packed_rows

IGNORED = -100  # label of a position without a prediction: torch's cross entropy leaves it out
PADDING = -1  # number of the example to which padding belongs, in packed rows
_NARROWEST = 2  # tokens of a row: a model gets at least one pair


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The rows of one forward pass: R rows of T tokens."""

    ids: Indices  # [R, T], padded on the right
    labels: Indices  # [R, T]: labels[r, t] is ids[r, t + 1], or IGNORED
    text_ids: tuple[tuple[int, ...], ...]  # [R]: the texts in each row
    # [R, T]: number of the example within its row, or PADDING; None: one example a row, without packing
    segments: Indices | None = None


@dataclass(frozen=True, slots=True)
class StepBatch:
    """What one worker computes in an optimizer step."""

    micro_batches: tuple[MicroBatch, ...]  # as many on every worker
    predicted_tokens: int  # labels that count, over all workers


@dataclass(frozen=True, slots=True)
class StepRows:
    """Which examples one worker computes in an optimizer step."""

    forwards: tuple[tuple[Row, ...], ...]  # the rows of each micro-batch
    predicted_tokens: int  # as in StepBatch

    def batch(self, examples: Examples, *, packing: bool) -> StepBatch:
        """The arrays of these rows."""
        micro_batches = tuple(_padded(examples, rows, packing=packing) for rows in self.forwards)
        return StepBatch(micro_batches, self.predicted_tokens)


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
        return self.rows(step).batch(self.examples, packing=self.config.packing)

    def rows(self, step: int) -> StepRows:
        """The examples of that batch, by row."""
        examples = self.examples
        indices = self.sampler.batch(step - 1)
        of_workers = rows_of_batch(indices, examples.lengths, self.config)
        own = tuple(tuple(forward[self.rank]) for forward in of_workers)
        return StepRows(own, examples.predicted_tokens(indices))


def rows_of_batch(indices: Indices, lengths: Indices, config: FinetuneConfig) -> list[list[list[Row]]]:
    """The rows of a batch by forward and worker. `lengths` are those of all examples."""
    sizes = config.workers, config.micro_batch_size
    if config.packing:
        return packed_rows(indices, lengths, config.sequence_length, *sizes)
    of_workers = micro_batches(indices, lengths, *sizes)
    return [[_one_a_row(own) for own in forward] for forward in of_workers]


def _one_a_row(indices: Indices) -> list[Row]:
    return list(indices[:, np.newaxis])


def micro_batch(examples: Examples, indices: Indices) -> MicroBatch:
    """These examples, one a row."""
    return _padded(examples, _one_a_row(indices), packing=False)


def _padded(examples: Examples, rows: Sequence[Row], *, packing: bool) -> MicroBatch:
    in_rows = [[examples[index] for index in row] for row in rows]
    width = max(_NARROWEST, *(sum(map(len, sequences)) for sequences in in_rows))
    ids = np.zeros((len(rows), width), dtype=np.int64)
    labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
    segments = np.full((len(rows), width), PADDING, dtype=np.int64)
    for number, (row, sequences) in enumerate(zip(rows, in_rows, strict=True)):
        start = 0
        for segment, (index, sequence) in enumerate(zip(row, sequences, strict=True)):
            end = start + len(sequence)
            ids[number, start:end] = sequence
            next_ids = np.where(examples.masked(index)[1:], IGNORED, sequence[1:])
            labels[number, start : end - 1] = next_ids
            segments[number, start:end] = segment
            start = end
    text_ids = tuple(tuple(examples.text_ids[row].tolist()) for row in rows)
    return MicroBatch(ids, labels, text_ids, segments if packing else None)


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
        order = _permutation(self.examples, self.seed, epoch)[start : start + self.batch_size]
        if (missing := self.batch_size - len(order)) == 0:
            return order
        return np.concatenate([order, _permutation(self.examples, self.seed, epoch + 1)[:missing]])


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> Indices:
    return np.random.default_rng((seed, 1, epoch)).permutation(size)


def micro_batches(indices: Indices, lengths: Indices, workers: int, micro_batch_size: int) -> Indices:
    """Split a batch, [accumulation, workers, micro_batch_size]; similar lengths stay together."""
    by_length = indices[np.argsort(lengths[indices], kind="stable")]
    return by_length.reshape(-1, workers, micro_batch_size)
