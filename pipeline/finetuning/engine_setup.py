"""A model in DeepSpeed, ready for its first step: weights, optimizer, learning rate schedule.

In: the configuration. Out: DeepSpeed's engine. The optimizer is torch's AdamW; the learning rate rises
linearly, then stays constant (the paper names only the warm-up). Needs a torch process group.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.deepspeed_settings import deepspeed_settings
from pipeline.finetuning.errors import CheckpointError
from tools_service.base.checkpoints import load_model

_SHOWN_NAMES = 8  # weights in an error message


def rate_factor(config: FinetuneConfig, warmup_steps: int | None = None) -> Callable[[int], float]:
    """Share of the learning rate by step, counted from 0: linear warm-up, then constant.

    `warmup_steps` are those of the first start of a run, where max_steps may have been another.
    """
    if warmup_steps is None:
        warmup_steps = math.ceil(config.warmup_share * config.max_steps)
    return lambda step: min(1.0, (step + 1) / max(1, warmup_steps))


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
            f"model.path {config.model.path!r}: the weights {', '.join(names[:_SHOWN_NAMES])} are not finite"
        )


def deepspeed_engine(config: FinetuneConfig, warmup_steps: int | None = None) -> Any:
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
        lr_scheduler=lambda wrapped: LambdaLR(wrapped, rate_factor(config, warmup_steps)),
    )
    return engine
