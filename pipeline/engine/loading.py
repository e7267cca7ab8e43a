"""From a folder or hub name to a checked engine on the device it is to run on.

In: a `ModelConfig`. Out: a `LanguageModel`. Weights come from safetensors only, and no code
of the checkpoint is run. A model that one GPU cannot hold is spread over several, some
layers on each (transformers' device_map): the GPUs take turns, so this buys memory, not
speed. checks.py decides whether the engine runs the model rightly.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pipeline.base.config import ModelConfig
from pipeline.base.cost import ModelShape
from pipeline.engine.checks import (
    check_head,
    check_lengths,
    check_tree,
    check_unpadding,
    check_weights,
)
from pipeline.engine.compiling import compile_layers
from pipeline.engine.errors import ModelError, first_line
from pipeline.engine.memory import profile_max_batch_tokens
from pipeline.engine.model import LanguageModel
from tools_service.base.checkpoints import (
    empty_model,
    load_config,
    load_model,
    load_tokenizer,
    resolve_device,
)
from tools_service.base.errors import ToolformerError

logger = logging.getLogger(__name__)


def load_language_model(config: ModelConfig) -> LanguageModel:
    """The engine for the model at `config.path`, loaded, checked and profiled.

    Raises ModelError for a model that cannot be loaded or would be run wrongly, and for
    devices that are not there.
    """
    model, tokenizer = load_causal_lm(config)
    return prepare_language_model(model, tokenizer, config.max_batch_tokens)


def prepare_language_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_batch_tokens: int | None = None,
) -> LanguageModel:
    """The engine around a loaded model, checked; on a GPU, what fits is measured.

    Raises ModelError if the model does not do what the engine relies on, and
    TokenizerError if the tokenizer does not.
    """
    try:
        return _checked(model, tokenizer, max_batch_tokens)
    except ToolformerError:
        raise
    # The code of some two hundred architectures runs here for the first time.
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be run by the engine, which needs a causal "
            "LM with a key-value cache; use another model (docs/architectures.md lists "
            f"those that work). {first_line(error)}"
        ) from error


def _checked(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_batch_tokens: int | None,
) -> LanguageModel:
    # The checks use the engine itself, so what they allow is set on it one by one.
    engine = LanguageModel(model, tokenizer, max_batch_tokens)
    check_weights(engine)
    engine.separate_head = check_head(engine)
    check_tree(engine)
    engine.can_unpad = check_unpadding(engine)
    check_lengths(engine)
    if max_batch_tokens is None and engine.device.type == "cuda":
        engine.max_batch_tokens = profile_max_batch_tokens(engine)
    # What the checks ran is no work on a text.
    engine.usage.clear()
    return engine


def load_causal_lm(
    config: ModelConfig,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The transformers model and its tokenizer. Raises ModelError."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "model.device cuda: this process sees no GPU; auto or cpu run on the CPU"
        )
    device = resolve_device(config.device)
    placement = _placement(config)
    if (
        device == "cpu"
        and config.dtype == "bfloat16"
        and not _cpu_has_bfloat16()
    ):
        logger.warning(
            "model.dtype bfloat16: this processor has no BF16 arithmetic, float32 is "
            "faster on it"
        )
    tokenizer = load_tokenizer(config.path, "model.path", ModelError)
    model = load_model(
        AutoModelForCausalLM,
        config.path,
        "model.path",
        dtype=config.dtype,
        error=ModelError,
        **placement,
    )
    if not placement:
        model = model.to(device)
    if config.compile and placement:
        logger.warning(
            "model.compile: a model that is spread over GPUs is not compiled"
        )
    elif config.compile:
        compile_layers(model)
    if device == "cuda":
        # cuDNN's attention plans anew for every shape, and each step has another.
        torch.backends.cuda.enable_cudnn_sdp(False)
    return model, tokenizer


def model_shape(path: str) -> ModelShape:
    """The shape of the model at `path`; no weights are read. Raises ModelError."""
    config = load_config(path, "model.path", ModelError)
    # On the meta device parameters have a shape and no memory.
    with torch.device("meta"):
        model = empty_model(AutoModelForCausalLM, config)
    return ModelShape.of(model)


def _cpu_has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(has for name, has in capabilities.items() if "bf16" in name)


def _placement(config: ModelConfig) -> dict[str, Any]:
    """What from_pretrained needs to spread the layers; nothing for one device."""
    if config.gpus == 1:
        return {}
    gpus = torch.cuda.device_count()
    if config.device == "cpu" or gpus < config.gpus:
        raise ModelError(
            f"model.gpus = {config.gpus}: this process sees {gpus} GPUs, on {config.device}"
        )
    memory = {
        gpu: torch.cuda.get_device_properties(gpu).total_memory
        for gpu in range(config.gpus)
    }
    return {"device_map": "balanced", "max_memory": memory}
