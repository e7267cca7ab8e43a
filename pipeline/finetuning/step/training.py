"""One optimizer step after another: a language model in DeepSpeed, on one worker (paper section 4.1,
Appendix B).

In: a configuration, the batches, this worker's rank. Out: the loss of each step: the mean over all
predicted tokens of its batch, in nats, however the batch is divided among workers and micro-batches.
engine_setup.py has the optimizer, schedule.py its rate, held_out.py the evaluation, checkpointing.py
saves and restores. Needs a torch process group, knows nothing of Ray.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.data.augmented_files import Indices
from pipeline.finetuning.data.batches import Batches, MicroBatch
from pipeline.finetuning.errors import DivergedError, NonFiniteLossError
from pipeline.finetuning.step.engine_setup import deepspeed_engine
from pipeline.finetuning.step.packed_attention import packed_inputs, require_isolation
from pipeline.finetuning.step.schedule import rate_factor
from pipeline.finetuning.step.token_loss import LabelledLogits, has_dropout, row_groups
from pipeline.finetuning.watching.metrics_log import TrainStep
from pipeline.finetuning.watching.step_meter import StepMeter


class Training:
    """Model, optimizer and data of one worker."""

    def __init__(
        self,
        config: FinetuneConfig,
        batches: Batches,
        tokenizer: Any,
        *,
        rank: int,
        device: torch.device,
        warmup_steps: int | None = None,
    ) -> None:
        """`warmup_steps`: those of the first start of the run. None: this is the first."""
        self.config, self.batches, self.tokenizer = config, batches, tokenizer
        self.rank, self.device = rank, device
        self.rate_factor = rate_factor(config, warmup_steps)
        self.engine = deepspeed_engine(config)
        self.meter = StepMeter(config, device)
        model = self.engine.module
        self.labelled_logits = LabelledLogits(model)
        # On a GPU fewer and larger forward passes are faster; with ZeRO-3 all workers must run as many.
        self.groups_rows = device.type == "cpu" and config.zero_stage < 3 and not has_dropout(model)
        if config.packing:
            require_isolation(self.nll, self.engine, device)

    def step(self, step: int) -> TrainStep:
        """Take optimizer step `step`, from 1 on. Raises NonFiniteLossError, DivergedError."""
        began = time.perf_counter()
        # The seed depends on the step, so that dropout is the same after a restart.
        seed = np.random.SeedSequence((self.config.seed, step, self.rank)).generate_state(1)[0]
        torch.manual_seed(int(seed))
        self.engine.train()
        learning_rate = self.config.learning_rate * self.rate_factor(step - 1)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        batch = self.batches.batch(step)
        # DeepSpeed averages over workers and micro-batches; the mean over tokens is wanted.
        scale = self.config.accumulation * self.config.workers / batch.predicted_tokens
        losses = []
        for number, rows in enumerate(batch.micro_batches, start=1):
            if self.config.packing:  # a step has as many forwards as its rows need
                self.engine.set_gradient_accumulation_boundary(number == len(batch.micro_batches))
            nll = self.nll(rows)
            losses.append(nll.detach())
            self.engine.backward(nll.sum() * scale)
            if number == len(batch.micro_batches):
                text_ids = [row for rows in batch.micro_batches for row in rows.text_ids]
                self._require_finite(step, text_ids, torch.cat(losses))
            self.engine.step()
        loss = float(self.sum_over_workers(torch.cat(losses).double().sum())) / batch.predicted_tokens
        norm = self.engine.get_global_grad_norm()
        if norm is not None and not math.isfinite(norm):
            raise DivergedError(f"step {step}: only the gradient is not finite: lower learning_rate")
        measures = self.meter.measures(batch, time.perf_counter() - began, self.sum_over_workers)
        return TrainStep(step, loss, learning_rate, None if norm is None else float(norm), **asdict(measures))

    def nll(self, rows: MicroBatch) -> torch.Tensor:
        """Negative log-probability of each row's labels in nats, float32 [R].

        Without packing no mask is needed: padding is on the right, so no token that counts attends to it.
        """
        if rows.segments is not None or not self.groups_rows:
            segments, model = rows.segments, self.engine.module
            packed = None if segments is None else packed_inputs(segments, model, self.device)
            return self._nll(rows.ids, rows.labels, packed)
        groups = row_groups(rows.labels)
        nll = [self._nll(rows.ids[group, :width], rows.labels[group, :width]) for group, width in groups]
        order = np.argsort(np.concatenate([group for group, _ in groups]))
        return torch.cat(nll)[torch.from_numpy(order)]

    def _nll(self, ids: Indices, labels: Indices, packed: dict[str, Any] | None = None) -> torch.Tensor:
        """One forward pass: [R]."""
        inputs = {"input_ids": torch.from_numpy(ids).to(self.device, non_blocking=True)} | (packed or {})
        return self.labelled_logits.nll(self.engine, inputs, labels).sum(dim=1)

    def _require_finite(self, step: int, text_ids: list[tuple[int, ...]], losses: torch.Tensor) -> None:
        """Raise NonFiniteLossError on all workers if the loss of a row of any worker is not finite."""
        finite = losses.isfinite().tolist()  # [rows]
        non_finite = [text_id for row, ok in zip(text_ids, finite, strict=True) if not ok for text_id in row]
        if not float(self.sum_over_workers(torch.tensor(float(len(non_finite)), device=self.device))):
            return
        gathered: list[list[int]] = [[] for _ in range(self.config.workers)]
        dist.all_gather_object(gathered, non_finite)
        raise NonFiniteLossError(step, sorted(text_id for ids in gathered for text_id in ids))

    def sum_over_workers(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all workers, in place."""
        dist.all_reduce(value)
        return value
