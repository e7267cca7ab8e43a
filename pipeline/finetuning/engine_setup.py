"""A model in DeepSpeed, ready for its first step: weights and optimizer.

In: the configuration. Out: DeepSpeed's engine. The optimizer is AdamW without weight decay; training.py
sets its learning rate (schedule.py). Needs a torch process group.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.deepspeed_settings import deepspeed_settings
from pipeline.finetuning.errors import CheckpointError
from tools_service.base.checkpoints import load_model

_SHOWN_NAMES = 8  # weights in an error message


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
    )
    return engine
