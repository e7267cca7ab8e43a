"""LoRA adapters (arXiv 2106.09685) of a model that is fine-tuned, made by PEFT.

In: a loaded model and the configuration. Out: the same model, in which only the adapters are trained; a
folder with an adapter, as PEFT, vLLM and tools_service/base/checkpoints.py load it; on request a whole
model. A run that starts from an adapter trains that adapter further, if it trains adapters at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.errors import CheckpointError
from tools_service.base.adapter_weights import adapter_matrices, require_layers
from tools_service.base.adapters import Adapter, base_metadata, read_adapter
from tools_service.base.checkpoints import empty_model, load_config, load_model, load_tokenizer
from tools_service.base.errors import ConfigurationError
from tools_service.base.files import apply_umask
from tools_service.base.settings import Frozen
from tools_service.base.weights import ADAPTER_WEIGHTS, WeightsError

_NAME = "default"  # PEFT's name for the only adapter of a model
_MAX_SHOWN = 12  # names of layers in a message


class ParameterCounts(Frozen):
    """Parameters of a run."""

    trained: int  # in an optimizer step
    total: int  # of the model without adapters, shared ones once


def count_parameters(config: FinetuneConfig) -> ParameterCounts:
    """How many parameters a run trains. No weights of the model are read.

    Raises ConfigurationError if the model has no layers of the names in `lora.target_modules`, or is an
    adapter that `lora` does not describe.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = empty_model(AutoModelForCausalLM, load_config(config.model.path, "model.path"))
        total = sum(weight.numel() for weight in model.parameters())
        if config.lora.rank:
            insert_adapters(model, config)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return ParameterCounts(trained=trained, total=total)


def insert_adapters(model: Any, config: FinetuneConfig) -> None:
    """Freeze `model` and give its target layers adapters, in place, equal on all workers.

    The adapters have the data type of the model. Raises ConfigurationError as `count_parameters` does.
    """
    import peft
    import torch
    from transformers.pytorch_utils import Conv1D

    lora = config.lora
    start = read_adapter(config.model.path, "model.path", CheckpointError)
    modules = dict(model.named_modules())
    layers = _target_layers(model, config, start)
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a float serves as well
        lora_dropout=lora.dropout,
        target_modules=_short_names(modules, layers),
        fan_in_fan_out=all(isinstance(modules[layer], Conv1D) for layer in layers),
        task_type=peft.TaskType.CAUSAL_LM,
        base_model_name_or_path=start.base if start else config.model.path,
        revision=start.revision if start else getattr(model.config, "_commit_hash", None),
    )
    torch.manual_seed(config.seed)
    peft.inject_adapter_in_model(settings, model)
    if start:
        _load(model, start)


def has_adapters(model: Any) -> bool:
    """Whether `insert_adapters` changed `model`."""
    return hasattr(model, "peft_config")


def save_adapter(model: Any, weights: Mapping[str, Any], folder: Path) -> None:
    """Write the adapter of `model` into `folder`; `weights` are its parameters by name."""
    from safetensors.torch import save_file

    settings = model.peft_config[_NAME]
    settings.inference_mode = True
    settings.target_modules = sorted(settings.target_modules)
    settings.save_pretrained(folder)
    tensors = {
        f"base_model.model.{name.replace(f'.{_NAME}.weight', '.weight')}": value.contiguous()
        for name, value in weights.items()
    }
    metadata = {"format": "pt"} | _metadata_of_base(settings.base_model_name_or_path)
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata=metadata)


_metadata_of_base = cache(base_metadata)  # reads all weights of the base


def merge_adapter(path: Path, output: Path, dtype: str) -> None:
    """Write the model in folder `path`, an adapter and its base, as one model of type `dtype` to `output`.

    Takes memory for the whole model. Raises ConfigurationError for what cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(str(path), "model")
    model = load_model(AutoModelForCausalLM, str(path), "model", dtype=dtype)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    apply_umask(output)


def _target_layers(model: Any, config: FinetuneConfig, start: Adapter | None) -> set[str]:
    """The names of the layers that get an adapter."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    layers = {name for name in linear if model.get_submodule(name) is not head}
    if targets := config.lora.target_modules:
        of_target = {target: {name for name in linear if _ends(name, target)} for target in targets}
        if unknown := [target for target, found in of_target.items() if not found]:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in layers})[:_MAX_SHOWN])
            raise ConfigurationError(
                f"lora.target_modules: the model has no linear layer {unknown[0]!r}; it has {known}"
            )
        layers = {name for found in of_target.values() for name in found}
        if any(model.get_submodule(name).weight is embeddings.weight for name in layers):
            raise ConfigurationError(
                "lora.target_modules: the output layer of this model shares its weight with the embeddings, "
                "which an adapter cannot change; leave it out"
            )
    return layers if start is None else _layers_of(start, config, layers, model)


def _layers_of(start: Adapter, config: FinetuneConfig, layers: set[str], model: Any) -> set[str]:
    """The layers of the adapter that the run starts from, which `lora` must describe."""
    lora, named = config.lora, f"model.path {config.model.path!r} is an adapter"
    advice = "use its values, or merge it into its base first (toolformer merge-lora)"
    if lora.rank != start.rank or lora.alpha / lora.rank != start.scale:
        raise ConfigurationError(
            f"{named} of rank {start.rank} and alpha {start.scale * start.rank:g}, and "
            f"lora.rank = {lora.rank}, lora.alpha = {lora.alpha:g}; {advice}"
        )
    try:
        own = set(adapter_matrices(start))
        require_layers(model, own)
    except WeightsError as error:
        raise CheckpointError(f"{named}: {error}") from error
    if lora.target_modules and own != layers:
        raise ConfigurationError(f"{named} of other layers than lora.target_modules; {advice}")
    return own


def _ends(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _short_names(modules: Mapping[str, Any], layers: set[str]) -> list[str]:
    """Ends of names that only `layers` have; their whole names if there are none."""
    ends = sorted({layer.rpartition(".")[2] for layer in layers})
    matched = {name for name in modules if any(_ends(name, end) for end in ends)}
    return ends if matched == layers else sorted(layers)


def _load(model: Any, start: Adapter) -> None:
    """Set the adapters of `model` to the numbers of `start`."""
    import torch

    for name, matrices in adapter_matrices(start).items():
        layer = model.get_submodule(name)
        for own, value in zip((layer.lora_A[_NAME], layer.lora_B[_NAME]), matrices, strict=True):
            if own.weight.shape != value.shape:
                raise CheckpointError(
                    f"model.path {str(start.folder)!r}: the adapter of {name} has the shape "
                    f"{list(value.shape)} instead of {list(own.weight.shape)}"
                )
            with torch.no_grad():
                own.weight.copy_(value)
