"""How fast an optimizer step was: seconds, tokens and FLOPs per second, memory.

In: the batch of this worker and the seconds of the step. Out: `StepMeasures` of all workers together.
A model's FLOPs are those of its real tokens, without padding (base/cost.py): the forward once, and the
backward, which has two matrix products for one of the forward. They count the method, not the machine:
activations that are computed again are only in the hardware's FLOPs, as in PaLM (arXiv 2204.02311,
Appendix B).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import psutil
import torch

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.base.hardware import peak_of_device
from pipeline.base.records import Cost
from pipeline.engine.loading import model_shape
from pipeline.finetuning.data.batches import IGNORED, MicroBatch, StepBatch
from pipeline.finetuning.watching.metrics_log import StepMeasures


class StepMeter:
    """Measures the steps of one worker."""

    def __init__(self, config: FinetuneConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        self._sums_on = device
        self._shape = model_shape(config.model.path)
        self._peak: float | None = None
        if device.type == "cuda":
            self._peak = peak_of_device(torch.cuda.get_device_name(device))

    def measures(
        self,
        batch: StepBatch,
        seconds: float,
        sum_over_workers: Callable[[torch.Tensor], torch.Tensor],
    ) -> StepMeasures:
        """All workers must call this together; each gets the measures of all of them."""
        work = batch_cost(batch)
        counts = torch.tensor([work.tokens, work.attention_pairs], dtype=torch.float64, device=self._sums_on)
        tokens, pairs = map(int, sum_over_workers(counts).tolist())
        forward, recomputed = self._forward(Cost(tokens, attention_pairs=pairs, logits=tokens))
        model = forward + self._backward(forward, pairs)
        recomputes = self._config.gradient_checkpointing
        return StepMeasures(
            seconds=seconds,
            tokens_per_s=tokens / seconds,
            flops_per_s=model / seconds,
            hardware_flops_per_s=(model + recomputed) / seconds if recomputes else None,
            utilisation=model / seconds / (self._config.workers * self._peak) if self._peak else None,
            memory_bytes=self._memory(),
        )

    def _forward(self, cost: Cost) -> tuple[int, int]:
        """FLOPs of the forward, and of its part that activation checkpointing runs again: the blocks."""
        blocks = Cost(cost.tokens, attention_pairs=cost.attention_pairs)
        return self._shape.flops(cost), self._shape.flops(blocks)

    def _backward(self, forward: int, pairs: int) -> int:
        """FLOPs of the backward. With adapters, the matrices of the model have no gradient."""
        if not self._config.lora.rank:
            return 2 * forward
        return forward + self._shape.flops(Cost(attention_pairs=pairs))

    def _memory(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return int(psutil.Process().memory_info().rss)


def batch_cost(batch: StepBatch) -> Cost:
    """The work of one forward of this worker's examples, padding left out; a prediction per token."""
    lengths = np.concatenate([example_lengths(rows) for rows in batch.micro_batches])
    tokens = int(lengths.sum())
    return Cost(tokens, attention_pairs=int((lengths * (lengths + 1) // 2).sum()), logits=tokens)


def example_lengths(rows: MicroBatch) -> np.ndarray:
    """Tokens of each example in these rows.

    Without packing an example ends with the token of its last label. One that is cut in a result that
    is left out of the loss is counted up to there.
    """
    if rows.segments is not None:
        numbers = [row[row >= 0] for row in rows.segments]  # padding has a negative number
        return np.concatenate([np.bincount(row) for row in numbers])
    width = rows.labels.shape[1]
    predicts = rows.labels != IGNORED  # [R, T]
    last = np.where(predicts.any(axis=1), width - 1 - predicts[:, ::-1].argmax(axis=1), -1)
    lengths: np.ndarray = last + 2
    return lengths
