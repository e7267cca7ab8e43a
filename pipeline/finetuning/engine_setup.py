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
from pipeline.finetuning.adapters import insert_adapters
from pipeline.finetuning.deepspeed_settings import deepspeed_settings
from pipeline.finetuning.errors import CheckpointError
from tools_service.base.adapters import read_adapter
from tools_service.base.checkpoints import load_base, load_model

_SHOWN_NAMES = 8  # weights in an error message


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
            f"model.path {config.model.path!r}: the weights {', '.join(names[:_SHOWN_NAMES])} are not finite"
        )


def deepspeed_engine(config: FinetuneConfig) -> Any:
    import deepspeed
    from torch.optim import AdamW
    from torch.optim.lr_scheduler import LambdaLR
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    deepspeed.init_distributed(dist_backend="nccl" if config.use_gpu else "gloo")
    ds_config = deepspeed_settings(config)
    # While this object lives, from_pretrained shards the model: no worker ever holds all of it.
    sharding = HfDeepSpeedConfig(ds_config) if config.zero_stage == 3 else None  # type: ignore[no-untyped-call]
    model = _load(config)
    del sharding
    _require_finite_weights(config, model)
    if config.lora.rank:
        insert_adapters(model, config)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = AdamW(trained, lr=config.learning_rate, weight_decay=0.0)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=ds_config,
        lr_scheduler=lambda wrapped: LambdaLR(wrapped, rate_factor(config)),
    )
    return engine


def _load(config: FinetuneConfig) -> Any:
    """The model to train; of an adapter that is trained further, its base."""
    import deepspeed
    from transformers import AutoModelForCausalLM

    def gathered(weight: Any) -> Any:
        return deepspeed.zero.GatheredParameters([weight], modifier_rank=0, enabled=config.zero_stage == 3)

    path, dtype = config.model.path, config.model.dtype
    adapter = read_adapter(path, "model.path", CheckpointError)
    if adapter and config.lora.rank:
        return load_base(AutoModelForCausalLM, adapter, "model.path", dtype=dtype, error=CheckpointError)
    return load_model(
        AutoModelForCausalLM, path, "model.path", dtype=dtype, error=CheckpointError, gathered=gathered
    )
