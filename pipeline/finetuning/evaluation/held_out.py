"""The model on held-out texts (paper section 4.1, Appendix B).

In: the training of this worker and the held-out examples. Out: the mean loss, in nats per predicted
token, of the texts with their calls and without, and what the generation probe counts. All workers must
call this together.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from pipeline.finetuning.data.augmented_files import Indices, files_of, tools_of
from pipeline.finetuning.data.batches import micro_batch
from pipeline.finetuning.data.examples import ExampleEncoder, Examples
from pipeline.finetuning.errors import CheckpointError, DivergedError
from pipeline.finetuning.evaluation.generation_probe import Probe, choose_prompts, tools_of_texts
from pipeline.finetuning.step.training import Training
from pipeline.finetuning.watching.metrics_log import GenerationProbe, HeldOutEvaluation
from tools_service.base.errors import ConfigurationError


class Evaluator:
    """Evaluates one training, with the held-out texts of its run."""

    def __init__(self, training: Training, held_out: Examples) -> None:
        """`held_out`: the texts in the column that is trained on."""
        config, self._training, self._held_out = training.config, training, held_out
        tools = tools_of(config.data)
        texts, plain = texts_of(config.data, held_out.text_ids)
        self._plain = held_out
        if config.column == "text":
            encoder = ExampleEncoder(training.tokenizer, config.sequence_length, tools)
            self._plain = encoder.batch(held_out.text_ids, plain, plain)
        prompts = choose_prompts(texts, plain, training.tokenizer, tools, config)
        self._probe = Probe(training, prompts, tools_of_texts(texts, tools))

    def evaluate(self, step: int) -> tuple[HeldOutEvaluation, GenerationProbe | None]:
        """The evaluation after `step` steps. Raises DivergedError."""
        loss, tokens = held_out_loss(self._training, self._held_out)
        without_calls = loss, tokens
        if self._plain is not self._held_out:
            without_calls = held_out_loss(self._training, self._plain)
        return HeldOutEvaluation(step, loss, tokens, *without_calls), self._probe.run(step)


def texts_of(folder: Path, text_ids: Indices) -> tuple[list[str], list[str]]:
    """The texts of C* in `folder` with these ids, in this order: with their calls, and without."""
    wanted = [("text_id", "in", text_ids.tolist())]
    found: dict[int, tuple[str, str]] = {}
    try:
        files = files_of(folder)
    except ConfigurationError as error:  # on this node alone: the driver has read them
        raise CheckpointError(str(error)) from error
    for path in files:
        rows = pq.read_table(path, columns=["text_id", "text", "plain"], filters=wanted, partitioning=None)
        found |= {row["text_id"]: (row["text"], row["plain"]) for row in rows.to_pylist()}
    pairs = [found[text_id] for text_id in text_ids.tolist()]
    return [text for text, _ in pairs], [plain for _, plain in pairs]


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
    training.sum_over_workers(total)
    dist.broadcast(total, src=0)  # the workers stop together, or none does
    loss = float(total) / predicted_tokens
    if not math.isfinite(loss):
        raise DivergedError(
            "the held-out loss is not finite: look at the weights in model.path, or lower learning_rate"
        )
    return loss, predicted_tokens
