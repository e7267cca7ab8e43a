"""The training loop of one worker: a language model in DeepSpeed (paper section 4.1, Appendix B).

In: a configuration, the examples, this worker's rank. Out: a loss for each step, a held-out loss, a
checkpoint to resume from, and a folder that `AutoModelForCausalLM.from_pretrained` loads.

The loss of a step is the mean over all predicted tokens of its batch, in nats, however the batch is
divided among workers and micro-batches. The held-out loss is the mean over all predicted held-out
tokens. The optimizer is torch's AdamW; the learning rate rises linearly, then stays constant (the
paper names only the warm-up). Needs a torch process group, knows nothing of Ray.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import SafetensorError

from pipeline.base.config import FinetuneConfig
from pipeline.finetuning.deepspeed_settings import deepspeed_settings
from pipeline.finetuning.examples import IGNORED, EpochSampler, Examples, Indices, Split, micro_batches, pad
from pipeline.finetuning.metrics_log import TrainStep
from tools_service.base.checkpoints import load_model
from tools_service.base.errors import ConfigurationError, ToolformerError
from tools_service.base.files import OutputError, apply_umask

_TAG = "state"
_SHOWN_IDS = 8  # text ids in an error message


class CheckpointError(ConfigurationError):
    """A worker could not load the model or its tokenizer; other workers may have loaded them."""


class NonFiniteLossError(ToolformerError):
    """The loss of an example is infinite or not a number. The step was not taken."""

    def __init__(self, step: int, text_ids: list[int]) -> None:
        super().__init__(step, text_ids)
        self.step, self.text_ids = step, text_ids

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.text_ids[:_SHOWN_IDS]))
        hidden = len(self.text_ids) - _SHOWN_IDS
        more = f" and {hidden} more" if hidden > 0 else ""
        return (
            f"step {self.step}: the loss is not finite on text_id {shown}{more}. Look at these texts; if "
            "nothing is wrong with them, the weights have diverged: lower learning_rate or raise warmup_share"
        )


class DivergedError(ToolformerError):
    """All losses are finite, but their gradient is not."""


class Training:
    """Model, optimizer and data of one worker."""

    def __init__(
        self, config: FinetuneConfig, data: Split, tokenizer: Any, *, rank: int, device: torch.device
    ) -> None:
        self.config, self.data, self.tokenizer = config, data, tokenizer
        self.rank, self.device = rank, device
        self.sampler = EpochSampler(len(data.train), config.batch_size, config.seed)
        self.engine = _deepspeed_engine(config)

    def step(self, step: int) -> TrainStep:
        """Take optimizer step `step`, from 1 on. Raises NonFiniteLossError, DivergedError."""
        # The seed depends on the step, so that dropout is the same after a restart.
        seed = np.random.SeedSequence((self.config.seed, step, self.rank)).generate_state(1)[0]
        torch.manual_seed(int(seed))
        self.engine.train()
        examples, workers = self.data.train, self.config.workers
        learning_rate = self.engine.get_lr()[0]
        batch = self.sampler.batch(step - 1)
        predicted_tokens = examples.predicted_tokens(batch)
        of_workers = micro_batches(batch, examples.lengths, workers, self.config.micro_batch_size)
        own = of_workers[:, self.rank]  # [accumulation, micro_batch_size]
        # DeepSpeed averages over workers and micro-batches; the mean over tokens is wanted.
        scale = len(own) * workers / predicted_tokens
        losses = []
        for number, indices in enumerate(own, start=1):
            nll = self._nll(examples, indices)
            losses.append(nll.detach())
            self.engine.backward(nll.sum() * scale)
            if number == len(own):
                self._require_finite(step, examples.text_ids[own.ravel()], torch.cat(losses))
            self.engine.step()
        loss = float(self._sum(torch.cat(losses).double().sum())) / predicted_tokens
        norm = self.engine.get_global_grad_norm()
        if norm is not None and not math.isfinite(norm):
            raise DivergedError(f"step {step}: only the gradient is not finite: lower learning_rate")
        return TrainStep(step, loss, learning_rate, None if norm is None else float(norm))

    @torch.no_grad()
    def evaluate(self) -> tuple[float, int]:
        """Mean loss in nats over all predicted held-out tokens, and the number of these tokens."""
        self.engine.eval()
        examples, size = self.data.held_out, self.config.micro_batch_size
        by_length = np.argsort(examples.lengths, kind="stable")
        batches = [by_length[start : start + size] for start in range(0, len(by_length), size)]
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for first in range(0, len(batches), self.config.workers):
            # ZeRO-3 gathers weights in every forward, so every worker must run one. A worker
            # without a batch of its own runs the last one and does not count it.
            number = first + self.rank
            nll = self._nll(examples, batches[min(number, len(batches) - 1)])
            total += nll.double().sum() if number < len(batches) else 0.0
        predicted_tokens = examples.predicted_tokens(by_length)
        loss = float(self._sum(total)) / predicted_tokens
        if not math.isfinite(loss):
            raise DivergedError(
                "the held-out loss is not finite: look at the weights in model.path, or lower learning_rate"
            )
        return loss, predicted_tokens

    def save(self, folder: Path, steps: int) -> None:
        """Write state for `restore` and, as the first worker, folder/model. All workers must call this.

        Raises OutputError on a worker whose disk is full, DivergedError on all of them.
        """
        model = self.engine.module
        with naming_a_full_disk(folder, sum(weight.nbytes for weight in model.parameters())):
            self.engine.save_checkpoint(str(folder), tag=_TAG, client_state={"steps": steps})
        weights, damaged = self._whole_weights()
        if float(self._sum(torch.tensor(float(len(damaged)), device=self.device))):
            raise DivergedError(
                f"step {steps}: the weights {', '.join(damaged[:_SHOWN_IDS])} are empty or not finite; "
                "nothing is published. Lower learning_rate, and start over with --force"
            )
        if self.rank == 0:
            buffers = dict(model.named_buffers())
            weights |= {name: value for name, value in model.state_dict().items() if name in buffers}
            with naming_a_full_disk(folder, sum(value.nbytes for value in weights.values())):
                model.save_pretrained(folder / "model", state_dict=weights)
                self.tokenizer.save_pretrained(folder / "model")
                apply_umask(folder / "model")
        dist.barrier()

    def _whole_weights(self) -> tuple[dict[str, torch.Tensor], list[str]]:
        """The parameters on the first worker, none on others, and the names of damaged ones on all."""
        import deepspeed

        weights, damaged = {}, []
        for name, parameter in self.engine.module.named_parameters():
            # Sharded weights are gathered one by one. A parameter with a ds_id is sharded.
            sharded = hasattr(parameter, "ds_id")
            with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
                if not parameter.numel() or not parameter.isfinite().all():
                    damaged.append(name)
                if self.rank == 0:
                    weights[name] = parameter.detach().cpu().clone()
        return weights, damaged

    def restore(self, folder: Path) -> int:
        """Load what `save` wrote; return the steps taken. ToolformerError if nothing is there."""
        if not (folder / _TAG).is_dir():
            raise ToolformerError(f"{folder}: no checkpoint here; start over with --force")
        _, state = self.engine.load_checkpoint(str(folder), tag=_TAG)
        return int(state["steps"])

    def _nll(self, examples: Examples, indices: Indices) -> torch.Tensor:
        """Negative log-probability of each example in nats, float32 [B].

        No mask is needed: padding is on the right, so no token that counts attends to it.
        """
        ids, labels = (torch.from_numpy(a).to(self.device) for a in pad([examples[i] for i in indices]))
        logits = self.engine(input_ids=ids, use_cache=False).logits.float()  # [B, T, V]
        nll = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        return nll.view_as(labels).sum(dim=1)

    def _require_finite(self, step: int, text_ids: Indices, losses: torch.Tensor) -> None:
        """Raise NonFiniteLossError on all workers if a loss of any worker is not finite."""
        non_finite = text_ids[~torch.isfinite(losses).cpu().numpy()].tolist()
        if not float(self._sum(torch.tensor(float(len(non_finite)), device=self.device))):
            return
        gathered: list[list[int]] = [[] for _ in range(self.config.workers)]
        dist.all_gather_object(gathered, non_finite)
        raise NonFiniteLossError(step, sorted(text_id for ids in gathered for text_id in ids))

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all workers, in place."""
        dist.all_reduce(value)
        return value


@contextmanager
def naming_a_full_disk(folder: Path, needed: int) -> Iterator[None]:
    """Raise OutputError if writing fails while fewer than `needed` bytes are free at `folder`.

    torch and safetensors report a full disk as a RuntimeError that does not say so.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if shutil.disk_usage(folder.parent).free >= needed:
            raise
        reason = os.strerror(errno.ENOSPC)
        raise OutputError(
            f"{folder}: cannot write: {reason}. Make room and give the command again, or name another output"
        ) from error


def rate_factor(config: FinetuneConfig) -> Callable[[int], float]:
    """Share of the learning rate by step, counted from 0: linear warm-up, then constant."""
    warmup_steps = max(1, math.ceil(config.warmup_share * config.max_steps))
    return lambda step: min(1.0, (step + 1) / warmup_steps)


def _require_finite_weights(config: FinetuneConfig, model: Any) -> None:
    """Raise CheckpointError on all workers if a weight that any of them holds is not finite."""
    held = (
        (name, getattr(parameter, "ds_tensor", parameter)) for name, parameter in model.named_parameters()
    )
    damaged = [name for name, weights in held if not weights.isfinite().all()]
    gathered: list[list[str]] = [[] for _ in range(config.workers)]
    dist.all_gather_object(gathered, damaged)
    if names := sorted({name for of_worker in gathered for name in of_worker}):
        raise CheckpointError(
            f"model.path {config.model.path!r}: the weights {', '.join(names[:_SHOWN_IDS])} are not finite"
        )


def _deepspeed_engine(config: FinetuneConfig) -> Any:
    import deepspeed
    from torch.optim import AdamW
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import AutoModelForCausalLM
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    deepspeed.init_distributed(dist_backend="nccl" if config.use_gpu else "gloo")
    ds_config = deepspeed_settings(config)
    # While this object lives, from_pretrained shards the model: no worker ever holds all of it.
    sharding = HfDeepSpeedConfig(ds_config) if config.zero_stage == 3 else None  # type: ignore[no-untyped-call]
    path, dtype = config.model.path, config.model.dtype
    model = load_model(AutoModelForCausalLM, path, "model.path", dtype=dtype, error=CheckpointError)
    del sharding
    _require_finite_weights(config, model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=ds_config,
        lr_scheduler=lambda wrapped: LambdaLR(wrapped, rate_factor(config)),
    )
    return engine
