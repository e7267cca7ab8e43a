"""A model in DeepSpeed, ready for its first step: weights and optimizer.

In: the configuration. Out: DeepSpeed's engine. The optimizer is AdamW without weight decay: torch's, or
DeepSpeed's where the settings ask for it. training.py sets its learning rate (schedule.py). Needs a torch
process group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch.distributed as dist
from torch.nn import Parameter

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.adapters import insert_adapters
from pipeline.finetuning.errors import CheckpointError
from pipeline.finetuning.step.deepspeed_settings import deepspeed_settings
from pipeline.finetuning.step.offloading import offload_device, unmet_requirement, uses_cpu_adam
from tools_service.base.adapters import read_adapter
from tools_service.base.checkpoints import load_base, load_model
from tools_service.base.errors import ConfigurationError

_SHOWN_NAMES = 8  # weights in an error message


def deepspeed_engine(config: FinetuneConfig) -> Any:
    """The model in DeepSpeed. All workers must call this.

    Raises ConfigurationError if the machine of any worker lacks what the settings need, CheckpointError
    for a model that cannot be loaded or whose weights are not finite.
    """
    import deepspeed
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    deepspeed.init_distributed(dist_backend="nccl" if config.use_gpu else "gloo")
    ds_config = deepspeed_settings(config)
    if reasons := _of_all_workers(config, [reason] if (reason := unmet_requirement(ds_config)) else []):
        raise ConfigurationError(f"deepspeed {config.deepspeed}: {reasons[0]}")
    # While this object lives, from_pretrained shards the model: no worker ever holds all of it.
    sharding = HfDeepSpeedConfig(ds_config) if config.zero_stage == 3 else None  # type: ignore[no-untyped-call]
    model = _load(config)
    del sharding
    _require_finite_weights(config, ds_config, model)
    if config.lora.rank:
        insert_adapters(model, config)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=_optimizer(config, ds_config, trained), config=ds_config
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


def _optimizer(config: FinetuneConfig, ds_config: Mapping[str, Any], weights: Iterable[Parameter]) -> Any:
    from torch.optim import AdamW

    if uses_cpu_adam(ds_config):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(weights, lr=config.learning_rate, weight_decay=0.0)
    # On a CPU torch's fused step takes about a tenth of the time of its default (docs/decisions/0043).
    fused = True if offload_device(ds_config) != "none" else None
    return AdamW(weights, lr=config.learning_rate, weight_decay=0.0, fused=fused)


def _require_finite_weights(config: FinetuneConfig, ds_config: Mapping[str, Any], model: Any) -> None:
    """Raise CheckpointError on all workers if a weight that any of them holds is not finite."""
    import deepspeed

    on_disk = offload_device(ds_config, "offload_param") == "nvme"
    damaged = []
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=on_disk):
            weights = parameter if on_disk else getattr(parameter, "ds_tensor", parameter)
            if not weights.isfinite().all():
                damaged.append(name)
    if names := _of_all_workers(config, damaged):
        raise CheckpointError(
            f"model.path {config.model.path!r}: the weights {', '.join(names[:_SHOWN_NAMES])} are not finite"
        )


def _of_all_workers(config: FinetuneConfig, items: list[str]) -> list[str]:
    """The items of all workers, sorted, each once. All workers must call this."""
    gathered: list[list[str]] = [[] for _ in range(config.workers)]
    dist.all_gather_object(gathered, items)
    return sorted({item for of_worker in gathered for item in of_worker})
