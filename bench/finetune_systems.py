"""The same fine-tuning steps by three systems: this project, a plain PyTorch loop, transformers' Trainer.

In: a `Workload`, the model in a folder and the batches, which are the same for all. Out: for some steps
the losses (nats per token), the wall and CPU seconds. All three use AdamW without weight decay, a constant
rate, gradients clipped to norm 1 and the mean over the predicted tokens of a batch. On a GPU they compute
in bfloat16 with float32 weights kept for the optimizer (here by DeepSpeed, in the others by autocast).
The functions at the end run in processes of their own, one for each system and worker.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F

from bench.measuring import measured
from pipeline.base.config import ModelConfig
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.data.batches import IGNORED, IndexedBatches, StepBatch
from pipeline.finetuning.data.examples import Examples
from tools_service.base.checkpoints import empty_model, load_model

RATE = 1e-4


@dataclass(frozen=True, slots=True)
class Workload:
    """A model and its batches: random texts of random lengths, the same for every system."""

    folder: str
    vocabulary: int
    sequence_length: int
    batch_size: int
    micro_batch_size: int
    ragged: bool = True  # lengths from an eighth of the sequence length on; else all are full
    gradient_checkpointing: bool = False
    use_gpu: bool = False
    threads: int = 1

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.use_gpu else "cpu")

    def configuration(self, zero_stage: int, workers: int) -> FinetuneConfig:
        """This project's configuration of the work."""
        dtype = "bfloat16" if self.use_gpu else "float32"
        return FinetuneConfig(
            model=ModelConfig(path=self.folder, dtype=dtype, device=self.device.type),  # type: ignore[arg-type]
            sequence_length=self.sequence_length,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            learning_rate=RATE,
            warmup_share=0.0,
            workers=workers,
            use_gpu=self.use_gpu,
            cpus_per_worker=self.threads,
            zero_stage=zero_stage,  # type: ignore[arg-type]
            gradient_checkpointing=self.gradient_checkpointing,
        )

    def batches(self, config: FinetuneConfig, rank: int = 0) -> IndexedBatches:
        """The batches of one worker."""
        count = 8 * self.batch_size
        rng = np.random.default_rng(0)
        shortest = max(2, self.sequence_length // 8) if self.ragged else self.sequence_length
        lengths = rng.integers(shortest, self.sequence_length, count, endpoint=True)
        tokens = rng.integers(0, self.vocabulary, lengths.sum(), dtype=np.int32)
        examples = Examples(
            text_ids=np.arange(count),
            tokens=tokens,
            is_result=np.zeros(len(tokens), dtype=bool),
            starts=np.cumsum(lengths) - lengths,
            lengths=lengths,
            results=np.zeros(count, dtype=np.int64),
            cut=np.zeros(count, dtype=bool),
        )
        return IndexedBatches(examples, config, rank)


@dataclass(frozen=True, slots=True)
class Steps:
    """Some optimizer steps of one system."""

    losses: list[float]  # nats per token, by step
    wall_s: float
    cpu_s: float
    peak_mib: float  # of the GPU, or on a CPU of the process above its size before the model was loaded


class Clock:
    """Wall and CPU seconds and peak memory since it was made, with the device's work done."""

    def __init__(self, device: torch.device) -> None:
        self._measuring = measured(device)
        self._timing = self._measuring.__enter__()

    def steps(self, losses: Sequence[float]) -> Steps:
        self._measuring.__exit__(None, None, None)
        timing = self._timing
        return Steps(list(losses), timing["wall_s"], timing["cpu_s"], timing["peak_mib"] - _before["mib"])


class Toolformer:
    """This project: `Training`, one worker of `workers`."""

    def __init__(self, workload: Workload, rank: int, zero_stage: int, workers: int) -> None:
        from pipeline.finetuning.step.training import Training

        torch.set_num_threads(workload.threads)
        config = workload.configuration(zero_stage, workers)
        batches = workload.batches(config, rank)
        self.device = workload.device
        self.training = Training(config, batches, None, rank=rank, device=self.device)

    def run(self, first: int, count: int) -> Steps:
        clock = Clock(self.device)
        return clock.steps([self.training.step(step).loss for step in range(first, first + count)])


class PlainLoop:
    """A loop in PyTorch, as its tutorials write it."""

    def __init__(self, workload: Workload) -> None:
        self.workload, self.device = workload, workload.device
        self.model = _model(workload).to(self.device).train()
        fused = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=0.0, fused=fused)
        self.batches = workload.batches(workload.configuration(1, 1))

    def run(self, first: int, count: int) -> Steps:
        clock = Clock(self.device)
        losses = [self._step(self.batches.batch(step)) for step in range(first, first + count)]
        return clock.steps(torch.stack(losses).tolist())

    def _step(self, batch: StepBatch) -> torch.Tensor:
        total = torch.zeros((), device=self.device)
        for rows in batch.micro_batches:
            ids, labels = (torch.from_numpy(a).to(self.device) for a in (rows.ids, rows.labels))
            with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
                logits = self.model(input_ids=ids, use_cache=False).logits
            loss = F.cross_entropy(
                logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
            )
            loss = loss / batch.predicted_tokens
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total


class TrainerLoop:
    """transformers' Trainer, without logging, saving and evaluation, on the same micro-batches."""

    def __init__(self, workload: Workload) -> None:
        self.workload, self.device = workload, workload.device
        self.model = _model(workload)
        self.batches = workload.batches(workload.configuration(1, 1))
        self.trainer: Any = None

    def run(self, first: int, count: int) -> Steps:
        """Train on the batches of these steps; only the time within steps counts."""
        batches = [self.batches.batch(step) for step in range(first, first + count)]
        with tempfile.TemporaryDirectory() as folder:
            if self.trainer is None:
                self.trainer = self._create(folder, count)
            self.trainer.train_dataset = [
                {"input_ids": ids, "labels": labels}
                for batch in batches
                for rows in batch.micro_batches
                for ids, labels in zip(rows.ids, rows.labels, strict=True)
            ]
            self.trainer.args.max_steps = count
            self.trainer.train()
        by_step, timed = self.trainer.measured()
        return replace(timed, losses=by_step)

    def _create(self, folder: str, count: int) -> Any:
        from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

        workload, device = self.workload, self.device
        clocks: list[Clock] = []
        timed: list[Steps] = []
        losses: list[torch.Tensor] = []

        class StepClock(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                if not clocks:
                    clocks.append(Clock(device))

            def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
                if state.global_step == state.max_steps:
                    timed.append(clocks.pop().steps([]))

        class InOrder(Trainer):  # type: ignore[misc]
            def _get_train_sampler(self, *_: Any) -> Any:
                return torch.utils.data.SequentialSampler(self.train_dataset)

            def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
                loss: torch.Tensor = super().training_step(*arguments, **named)
                losses.append(loss.detach())
                return loss

            def measured(self) -> tuple[list[float], Steps]:
                by_step = torch.stack(losses).view(-1, workload.batch_size // workload.micro_batch_size)
                losses.clear()
                return by_step.sum(dim=1).tolist(), timed[-1]

        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=count,
            per_device_train_batch_size=workload.micro_batch_size,
            gradient_accumulation_steps=workload.batch_size // workload.micro_batch_size,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch_fused" if workload.use_gpu else "adamw_torch",
            bf16=workload.use_gpu,
            use_cpu=not workload.use_gpu,
            gradient_checkpointing=workload.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            dataloader_pin_memory=workload.use_gpu,
            remove_unused_columns=False,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = InOrder(
            model=self.model,
            args=arguments,
            data_collator=_collate,
            train_dataset=[],
            callbacks=[StepClock()],
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


def _collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """One micro-batch. Trainer's models shift labels themselves: they stand below their own tokens."""
    ids, labels = (
        torch.from_numpy(np.stack([row[name] for row in rows])) for name in ("input_ids", "labels")
    )
    shifted = torch.full_like(labels, IGNORED)
    shifted[:, 1:] = labels[:, :-1]
    return {"input_ids": ids, "labels": shifted}


def _model(workload: Workload) -> Any:
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(workload.threads)
    model = load_model(AutoModelForCausalLM, str(workload.folder), "model", dtype="float32")
    if workload.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


_running: dict[str, Any] = {}  # the system of this process
_before = {"mib": 0.0}  # this process without a model


def start(rank: int, workload: Workload, name: str, workers: int) -> None:
    """Make system `name` in this process: plain, trainer, or zero0 to zero3."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if not workload.use_gpu:
        import deepspeed  # noqa: F401  its size is no model's

        _before["mib"] = psutil.Process().memory_info().rss / 2**20
    if name.startswith("zero"):
        _running["system"] = Toolformer(workload, rank, int(name[-1]), workers)
    else:
        assert not os.environ.get("LOCAL_RANK")  # otherwise Trainer would wrap the model for several workers
        _running["system"] = PlainLoop(workload) if name == "plain" else TrainerLoop(workload)


def run(rank: int, first: int, count: int) -> Steps:
    """Take steps with the system of this process."""
    steps: Steps = _running["system"].run(first, count)
    return steps


def save_model(config: Any, folder: Path) -> None:
    """Random weights of this shape, in float32."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    empty_model(AutoModelForCausalLM, config).to(torch.float32).save_pretrained(folder)
