"""The model on held-out texts (paper section 4.1, Appendix B).

In: the training of this worker and the held-out examples. Out: the mean loss, in nats per predicted
token. All workers must call this together.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from pipeline.finetuning.batches import micro_batch
from pipeline.finetuning.errors import DivergedError
from pipeline.finetuning.examples import Examples
from pipeline.finetuning.training import Training


@torch.no_grad()
def held_out_loss(training: Training, examples: Examples) -> tuple[float, int]:
    """Mean loss in nats over all predicted held-out tokens, and the number of these tokens."""
    training.engine.eval()
    size, workers = training.config.micro_batch_size, training.config.workers
    by_length = np.argsort(examples.lengths, kind="stable")
    batches = [by_length[start : start + size] for start in range(0, len(by_length), size)]
    total = torch.zeros((), dtype=torch.float64, device=training.device)
    for first in range(0, len(batches), workers):
        # ZeRO-3 gathers weights in every forward, so every worker must run one. A worker
        # without a batch of its own runs the last one and does not count it.
        number = first + training.rank
        nll = training.nll(micro_batch(examples, batches[min(number, len(batches) - 1)]))
        total += nll.double().sum() if number < len(batches) else 0.0
    predicted_tokens = examples.predicted_tokens(by_length)
    loss = float(training.sum_over_workers(total)) / predicted_tokens
    if not math.isfinite(loss):
        raise DivergedError(
            "the held-out loss is not finite: look at the weights in model.path, or lower learning_rate"
        )
    return loss, predicted_tokens
