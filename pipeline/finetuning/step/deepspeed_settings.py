"""DeepSpeed's settings of a run: a JSON file, checked, with the sizes and types of the configuration.

In: a FinetuneConfig, whose `deepspeed` may name a file of the user. Out: the dict for DeepSpeed, or a
ConfigurationError that names the file and the key. What the configuration decides (ZeRO stage, batch
sizes, optimizer, learning rate, data types) has one source: a file may repeat it, but not contradict
it. What would train on something else than the examples, or save another model, is refused. All other
keys go to DeepSpeed (deepspeed_checks.py asks its parser which it knows). Nothing here imports DeepSpeed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.step.offloading import contradiction
from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.printable import printable

_INSTEAD = {
    "optimizer": "fine-tuning uses torch's AdamW; set learning_rate",
    "scheduler": "set learning_rate, warmup_share and schedule",
    "amp": "set model.dtype",
    "bfloat16": "set model.dtype",
    "torch_autocast": "set model.dtype",
    "data_types.param_dtype": "set model.dtype",
    "activation_checkpointing": "set gradient_checkpointing",
    "bf16.bf16_master_weights_and_grads": "the optimizer updates float32 weights",
    "bf16.bf16_optimizer_states": "the optimizer keeps float32 states",
    "zero_optimization.cpu_offload": "write offload_optimizer with device = cpu",
    "zero_optimization.cpu_offload_param": "write offload_param with device = cpu",
    "checkpoint.load_universal": "a run resumes from its own checkpoints",
}
# These change what an example, a batch or a saved weight is.
_NOT_SUPPORTED = (
    "autotuning",
    "compression_training",
    "curriculum_learning",
    "data_efficiency",
    "eigenvalue",
    "elasticity",
    "expert_parallel",
    "gradient_allreduce_op",
    "hybrid_engine",
    "pipeline",
    "progressive_layer_drop",
    "quantize_training",
    "sequence_parallel_size",
    "sparse_attention",
    "tensor_parallel",
    "weight_quantization",
    "zero_optimization.offload_optimizer.super_offload",
    "zero_optimization.zenflow",
)
_AUTO_IS_DEEPSPEEDS = ("data_types.keep_in_fp32_modules",)
_AUTO = "auto"
_PACKAGED = Path(__file__).parents[1] / "deepspeed"


def deepspeed_settings(config: FinetuneConfig) -> dict[str, Any]:
    """The JSON file of the ZeRO stage, or the user's own, with what `config` decides filled in.

    Raises ConfigurationError, naming file and key, for a file that is not JSON, contradicts `config`
    or asks for what fine-tuning does not do. DeepSpeed's own check is `deepspeed_checks.require_known_keys`.
    """
    path = config.deepspeed or packaged_file(f"zero{config.zero_stage}")
    settings = _read(path)
    if config.deepspeed is None and not config.use_gpu and config.zero_stage in (1, 2):
        # A copy of each gradient that keeps a GPU's memory from fragmenting: 3 % of the demo's step.
        settings["zero_optimization"]["contiguous_gradients"] = False
    bfloat16 = config.model.dtype == "bfloat16"
    decided: dict[str, tuple[Any, str]] = {
        "train_batch_size": (config.batch_size, f"batch_size = {config.batch_size}"),
        "train_micro_batch_size_per_gpu": (
            config.micro_batch_size,
            f"micro_batch_size = {config.micro_batch_size}",
        ),
        "gradient_accumulation_steps": (
            config.accumulation,
            f"batch_size / (workers x micro_batch_size) = {config.accumulation}",
        ),
        "zero_optimization.stage": (config.zero_stage, f"zero_stage = {config.zero_stage}"),
        "bf16.enabled": (bfloat16, f"model.dtype = {config.model.dtype}"),
        "fp16.enabled": (False, f"model.dtype = {config.model.dtype}"),
    }
    for key, (value, field) in decided.items():
        section, name = _section(settings, key, path)
        given = section.get(name, _AUTO)
        if given != _AUTO and (given != value or isinstance(given, bool) is not isinstance(value, bool)):
            raise ConfigurationError(
                f"deepspeed {path}: {key} = {shown(given)}, but {field}: change one of the two"
            )
        section[name] = value
    _refuse(settings, path)
    if wrong := contradiction(settings, config.zero_stage):
        raise ConfigurationError(f"deepspeed {path}: {wrong}")
    known = {key: value for key, value in settings.items() if value is not None}
    # DeepSpeed stops at optimizers that it has no tests of. With offloading it stops at all but its own.
    known["zero_allow_untested_optimizer"] = True
    return {"zero_force_ds_cpu_optimizer": False} | known


def packaged_file(name: str) -> Path:
    """Path of the file `name`.json of this package."""
    return _PACKAGED / f"{name}.json"


def given_file(path: Path) -> Path:
    """`path`, unless no such file exists and it is the name of a file of this package (zero3_offload)."""
    packaged = packaged_file(str(path))
    return packaged if len(path.parts) == 1 and not path.exists() and packaged.is_file() else path


def shown(value: Any) -> str:
    """A value in a message."""
    return printable(repr(value), 100)


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except FileNotFoundError as error:
        names = ", ".join(sorted(file.stem for file in _PACKAGED.glob("*.json")))
        raise ConfigurationError(
            f"deepspeed {path}: no such file. Copy one of {_PACKAGED}, or give its name ({names})"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"deepspeed {path}: not a DeepSpeed configuration in JSON: {brief(error)}"
        ) from error
    if not isinstance(settings, dict):
        raise ConfigurationError(f"deepspeed {path}: not a DeepSpeed configuration: it must be a JSON object")
    return settings


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {printable(key)} occurs twice")
        values[key] = value
    return values


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _section(settings: dict[str, Any], key: str, path: Path) -> tuple[dict[str, Any], str]:
    """The dict that holds `key`, made if there is none, and the name within it."""
    *sections, name = key.split(".")
    for section in sections:
        inner = settings.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigurationError(f"deepspeed {path}: {section} = {shown(inner)} must be a JSON object")
        settings = inner
    return settings, name


def _refuse(settings: Mapping[str, Any], path: Path) -> None:
    """Raise ConfigurationError for the first key that fine-tuning cannot honour."""
    reasons = _INSTEAD | dict.fromkeys(_NOT_SUPPORTED, "fine-tuning does not support it")
    for key, reason in reasons.items():
        value: Any = settings
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if not _off(value):
            raise ConfigurationError(f"deepspeed {path}: remove {key}: {reason}")
    if not settings.get("zero_allow_untested_optimizer", True):
        raise ConfigurationError(
            f"deepspeed {path}: zero_allow_untested_optimizer must be true: the optimizer is torch's AdamW"
        )
    if settings.get("steps_per_print") == 0:  # DeepSpeed divides by it
        raise ConfigurationError(f"deepspeed {path}: steps_per_print = 0: write a number from 1 on")
    for key, value in _leaves(settings):
        if value == _AUTO and key not in _AUTO_IS_DEEPSPEEDS:
            raise ConfigurationError(
                f"deepspeed {path}: {printable(key)} = 'auto' is for the Trainer of transformers: "
                "write a value, or remove the key"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigurationError(f"deepspeed {path}: {printable(key)} = {value} is not a finite number")


def _off(value: Any) -> bool:
    """Whether a section says that it is not to be used."""
    if isinstance(value, Mapping):
        return not value or value.get("enabled") is False or value.get("device") == "none"
    return value is None or value is False


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, prefix)
    else:
        yield prefix, value
