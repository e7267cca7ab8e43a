"""The training loop of one worker: DeepSpeed around a causal language model (paper section 4.1, Appendix B).

In: a configuration, the examples, this worker's rank. Out: a loss for each step, a held-out perplexity, a
checkpoint to go on from, and a folder that `AutoModelForCausalLM.from_pretrained` loads.

The loss of a step is the mean over all predicted tokens of its batch, in nats, however the batch is dealt
out to workers and micro-batches; so is the held-out loss over all held-out tokens. AdamW is torch's; the
rate rises linearly and then stays (the paper names the warm-up and nothing after it). Needs a torch process
group, knows nothing of Ray.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from pipeline.base.config import FinetuneConfig
from pipeline.finetuning.examples import IGNORED, Examples, Indices, Order, Split, micro_batches, pad
from pipeline.finetuning.metrics_log import Step
from tools_service.base.errors import ToolformerError

DEEPSPEED_CONFIGURATIONS = Path(__file__).parent / "deepspeed"
_TAG = "state"


class NonFiniteLossError(ToolformerError):
    """The loss of an example is infinite or not a number: the step was not taken."""

    def __init__(self, step: int, text_ids: list[int]) -> None:
        super().__init__(step, text_ids)
        self.step, self.text_ids = step, text_ids

    def __str__(self) -> str:
        named = ", ".join(map(str, self.text_ids[:8]))
        more = f" and {len(self.text_ids) - 8} more" if len(self.text_ids) > 8 else ""
        return (
            f"step {self.step}: the loss is not finite on text_id {named}{more}. Look at these texts; if "
            "nothing is wrong with them, the weights have diverged: lower learning_rate or raise warmup_share"
        )


class DivergedError(ToolformerError):
    """The losses are finite and their gradient is not."""


class Training:
    """Model, optimizer and data of one worker."""

    def __init__(
        self, config: FinetuneConfig, data: Split, tokenizer: Any, *, rank: int, device: torch.device
    ) -> None:
        self.config, self.data, self.tokenizer = config, data, tokenizer
        self.rank, self.device = rank, device
        self.order = Order(len(data.train), config.batch_size, config.seed)
        self.engine = _engine(config)

    def step(self, step: int) -> Step:
        """Take optimizer step number `step`, counted from 1. Raises NonFiniteLossError, DivergedError."""
        torch.manual_seed(_seed(self.config.seed, step, self.rank))  # dropout: the same after a restart
        self.engine.train()
        batch, examples, rate = self.order.batch(step - 1), self.data.train, self.engine.get_lr()[0]
        predictions = examples.predictions(batch)
        deals = micro_batches(batch, examples.lengths, self.config.workers, self.config.micro_batch_size)
        # DeepSpeed averages over workers and accumulated micro-batches; this makes it the mean over tokens.
        scale = deals.shape[0] * deals.shape[1] / predictions
        losses = []
        for number, mine in enumerate(deals[:, self.rank], start=1):
            nll = self._nll(examples, mine)
            losses.append(nll.detach())
            self.engine.backward(nll.sum() * scale)
            if number == len(deals):
                self._check(step, examples.text_ids[deals[:, self.rank].ravel()], torch.cat(losses))
            self.engine.step()
        loss = float(self._sum(torch.cat(losses).double().sum())) / predictions
        norm = self.engine.get_global_grad_norm()
        if norm is not None and not math.isfinite(norm):
            raise DivergedError(
                f"step {step}: the gradient is not finite, every loss is: lower learning_rate"
            )
        return Step(step, loss, rate, None if norm is None else float(norm))

    @torch.no_grad()
    def evaluate(self) -> tuple[float, int]:
        """Mean loss in nats over all predicted held-out tokens, and their number."""
        self.engine.eval()
        examples, size = self.data.held_out, self.config.micro_batch_size
        by_length = np.argsort(examples.lengths, kind="stable")
        batches = [by_length[start : start + size] for start in range(0, len(by_length), size)]
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for first in range(0, len(batches), self.config.workers):
            # ZeRO-3 gathers weights in every forward: a worker without a batch runs one that does not count.
            mine = first + self.rank
            nll = self._nll(examples, batches[min(mine, len(batches) - 1)])
            total += nll.double().sum() if mine < len(batches) else 0.0
        predictions = examples.predictions(by_length)
        return float(self._sum(total)) / predictions, predictions

    def save(self, folder: Path, steps: int) -> None:
        """What `restore` needs, in `folder`, by all workers; the model itself in folder/model."""
        self.engine.save_checkpoint(str(folder), tag=_TAG, client_state={"steps": steps})
        self._export(folder / "model")

    def restore(self, folder: Path) -> int:
        """Go on from what `save` wrote: the number of steps taken."""
        if not (folder / _TAG).is_dir():
            raise ToolformerError(f"{folder}: no checkpoint here; start over with --force")
        _, state = self.engine.load_checkpoint(str(folder), tag=_TAG)
        return int(state["steps"])

    def _nll(self, examples: Examples, indices: Indices) -> torch.Tensor:
        """Negative log-probability of each example in nats, float32 [B].

        Padding is on the right of a causal model: it is seen by no token that counts, so no mask is needed.
        """
        ids, labels = (torch.from_numpy(a).to(self.device) for a in pad([examples[i] for i in indices]))
        logits = self.engine(input_ids=ids, use_cache=False).logits.float()  # [B, T, V]
        nll = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        return nll.view_as(labels).sum(dim=1)

    def _check(self, step: int, text_ids: Indices, losses: torch.Tensor) -> None:
        """All workers raise together, or none."""
        wrong = text_ids[~torch.isfinite(losses).cpu().numpy()].tolist()
        if not float(self._sum(torch.tensor(float(len(wrong)), device=self.device))):
            return
        gathered: list[list[int]] = [[] for _ in range(self.config.workers)]
        dist.all_gather_object(gathered, wrong)
        raise NonFiniteLossError(step, sorted(i for ids in gathered for i in ids))

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(value)
        return value

    def _export(self, folder: Path) -> None:
        """Gather the weights, one parameter at a time; the first worker writes them and the tokenizer."""
        import deepspeed

        model, sharded = self.engine.module, self.config.zero_stage == 3
        weights = {}
        for name, parameter in model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
                if self.rank == 0:
                    weights[name] = parameter.detach().cpu().clone()
        if self.rank == 0:
            weights |= {
                name: buffer
                for name, buffer in model.state_dict().items()
                if name in dict(model.named_buffers())
            }
            model.save_pretrained(folder, state_dict=weights)
            self.tokenizer.save_pretrained(folder)
        dist.barrier()


def load_tokenizer(config: FinetuneConfig) -> Any:
    """The model's tokenizer; this process shows no progress bars of transformers from here on."""
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return AutoTokenizer.from_pretrained(config.model.path)


def prepare_deepspeed(use_gpu: bool) -> None:
    """Choose the accelerator, before DeepSpeed is imported for the first time.

    On CPU DeepSpeed would compile a shared-memory all-reduce that only tensor-parallel inference calls: a C++
    compiler, ninja and minutes for nothing (docs/decisions/0005). Named as unavailable here, before DeepSpeed
    looks for itself what it could compile, it is left out and gloo does the work.
    """
    os.environ["DS_ACCELERATOR"] = "cuda" if use_gpu else "cpu"
    import deepspeed.ops

    if not use_gpu:
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}


def deepspeed_configuration(config: FinetuneConfig) -> dict[str, Any]:
    """The JSON file of the ZeRO stage, or the user's own, with the sizes and types of `config` filled in."""
    path = config.deepspeed or DEEPSPEED_CONFIGURATIONS / f"zero{config.zero_stage}.json"
    try:
        from_file: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ToolformerError(f"{path}: not a DeepSpeed configuration: {error}") from error
    return from_file | {
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
    }


def rate_factor(config: FinetuneConfig) -> Callable[[int], float]:
    """Share of the learning rate by step: linear warm-up, then constant."""
    warmup = max(1, math.ceil(config.warmup_share * config.max_steps))
    return lambda step: min(1.0, (step + 1) / warmup)


def _engine(config: FinetuneConfig) -> Any:
    import deepspeed
    from torch.optim import AdamW
    from torch.optim.lr_scheduler import LambdaLR

    deepspeed.init_distributed(dist_backend="nccl" if config.use_gpu else "gloo")
    settings = deepspeed_configuration(config)
    model = _load(config, settings)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=settings,
        lr_scheduler=lambda wrapped: LambdaLR(wrapped, rate_factor(config)),
    )
    return engine


def _load(config: FinetuneConfig, settings: dict[str, Any]) -> Any:
    """The model, with ZeRO-3 sharded while it loads: no worker ever holds all of it."""
    from transformers import AutoModelForCausalLM
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    # from_pretrained looks for this object; it has to live until the model is loaded.
    sharding = HfDeepSpeedConfig(settings) if config.zero_stage == 3 else None  # type: ignore[no-untyped-call]
    dtype = getattr(torch, config.model.dtype)
    model = AutoModelForCausalLM.from_pretrained(
        config.model.path, dtype=dtype, use_safetensors=True, trust_remote_code=False
    )
    del sharding
    return model


def _seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])
