"""From a folder or hub name to a checked engine on the device it is to run on.

In: a `ModelConfig`. Out: a `LanguageModel`. Weights come from safetensors only, and no code
of the checkpoint is run. A model that one GPU cannot hold is spread over several, some
layers on each (transformers' device_map): the GPUs take turns, so this buys memory, not
speed. checks.py decides whether the engine runs the model rightly.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
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
    check_last_layer,
    check_layers,
    check_lengths,
    check_prompt_sharing,
    check_ragged,
    check_tree,
    check_unpadding,
    check_weights,
)
from pipeline.engine.compiling import compile_layers
from pipeline.engine.errors import ModelError, first_line
from pipeline.engine.limits import max_positions, require_tokenizer_fits
from pipeline.engine.memory import (
    PAPER_DRAWS,
    limit_to_share,
    profile_max_batch_tokens,
)
from pipeline.engine.model import LanguageModel
from pipeline.syntax.tokenizer import CallTokens
from tools_service.base.allocator import keep_freed_memory
from tools_service.base.checkpoints import (
    empty_model,
    load_config,
    load_model,
    load_tokenizer,
    resolve_device,
    stored_numbers,
)
from tools_service.base.errors import ToolformerError
from tools_service.base.packed_linear import pack_linear_layers

logger = logging.getLogger(__name__)


def load_language_model(
    config: ModelConfig, draws: int = PAPER_DRAWS
) -> LanguageModel:
    """The engine for the model at `config.path`, loaded, checked and profiled for up to
    `draws` draws of a text.

    Raises ModelError for a model that cannot be loaded or would be run wrongly, and for
    devices that are not there.
    """
    model, tokenizer = load_causal_lm(config)
    return prepare_language_model(
        model, tokenizer, config.max_batch_tokens, draws
    )


def require_model(config: ModelConfig) -> None:
    """Refuse a model before a cluster starts, by its folder, configuration and tokenizer.

    Raises ModelError, or TokenizerError for a tokenizer that cannot carry calls. No weights
    are read: what they decide is checked where the model is loaded.
    """
    path = config.path
    tokenizer = load_tokenizer(path, "model.path", ModelError)
    model = _causal_config(path)
    with refused(f"model.path {path!r}: cannot check it"):
        require_tokenizer_fits(model, tokenizer)
        CallTokens.of(tokenizer)
        max_positions(model)
        model_shape(path)


@contextmanager
def refused(problem: str) -> Iterator[None]:
    """Turn what the code of an architecture raises into a ModelError."""
    try:
        yield
    except ToolformerError:
        raise
    # The code of some two hundred architectures runs here for the first time.
    except Exception as error:
        raise ModelError(
            f"{problem}. Use another model; docs/architectures.md lists those that work. "
            f"{first_line(error)}"
        ) from error


def prepare_language_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_batch_tokens: int | None = None,
    draws: int = PAPER_DRAWS,
) -> LanguageModel:
    """The engine around a loaded model, checked; on a GPU, what fits is measured.

    Raises ModelError if the model does not do what the engine relies on, and
    TokenizerError if the tokenizer does not.
    """
    name = type(model).__name__
    with refused(f"{name} fails in the engine's checks"):
        return _checked(model, tokenizer, max_batch_tokens, draws)


def _checked(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_batch_tokens: int | None,
    draws: int,
) -> LanguageModel:
    if model.device.type == "cuda":
        # cuDNN's attention plans anew for every shape, and each step has another.
        torch.backends.cuda.enable_cudnn_sdp(False)
    # The checks use the engine itself, so what they allow is set on it one by one.
    engine = LanguageModel(model, tokenizer, max_batch_tokens)
    check_weights(engine)
    engine.separate_head = check_head(engine)
    check_layers(engine)
    check_tree(engine)
    engine.can_unpad = check_unpadding(engine)
    engine.ragged_attention = check_ragged(engine)
    engine.can_share_prompts = check_prompt_sharing(engine)
    engine.can_leave_out_unwanted = check_last_layer(engine)
    check_lengths(engine)
    if max_batch_tokens is None and engine.device.type == "cuda":
        engine.max_batch_tokens = profile_max_batch_tokens(engine, draws)
    # What the checks ran is no work on a text.
    engine.usage.clear()
    return engine


def load_causal_lm(
    config: ModelConfig,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The transformers model and its tokenizer. Raises ModelError."""
    device = resolve_device(config.device, "model.device", ModelError)
    placement = _placement(config)
    if device == "cuda":
        limit_to_share(config.gpus)
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
    _require_enough_weights(config.path)
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
    elif config.compile and device == "cpu":
        logger.warning(
            "model.compile: ignored on a CPU, where it saves no time"
        )
    elif config.compile:
        compile_layers(model)
    if device == "cpu":
        keep_freed_memory()
        pack_linear_layers(model)
    return model, tokenizer


def model_shape(path: str) -> ModelShape:
    """The shape of the model at `path`; no weights are read. Raises ModelError."""
    return ModelShape.of(_meta_model(path))


def _causal_config(path: str) -> Any:
    """The configuration at `path`, of a model without an encoder."""
    config = load_config(path, "model.path", ModelError)
    if config.is_encoder_decoder:
        raise ModelError(
            f"model.path {path!r}: {config.model_type} is an encoder-decoder; use a causal "
            "LM (docs/architectures.md lists those that work)"
        )
    return config


def _meta_model(path: str) -> PreTrainedModel:
    """The model at `path` without its weights: parameters have a shape and no memory."""
    config = _causal_config(path)
    problem = f"model.path {path!r}: transformers cannot make this {config.model_type}"
    with refused(problem), torch.device("meta"):
        model: PreTrainedModel = empty_model(AutoModelForCausalLM, config)
    return model


def _require_enough_weights(path: str) -> None:
    """Raises ModelError if a folder holds less than half of the weights that its
    configuration describes: memory for all of them would be taken first."""
    stored = stored_numbers(path, "model.path", ModelError)
    if not stored:
        return
    weights = _meta_model(path).parameters()
    expected = sum(weight.numel() for weight in weights)
    if stored < expected / 2:
        raise ModelError(
            f"model.path {path!r}: config.json describes a model of {expected:,} weights, "
            f"and the files hold {stored:,}: they are not of one model, or weights are "
            "missing"
        )


def _cpu_has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(has for name, has in capabilities.items() if "bf16" in name)


def _placement(config: ModelConfig) -> dict[str, Any]:
    """What from_pretrained needs to spread the layers; nothing for one device."""
    if config.gpus <= 1:
        return {}
    gpus = torch.cuda.device_count()
    if config.device == "cpu" or gpus < config.gpus:
        raise ModelError(
            f"model.gpus = {config.gpus:g}: this process sees {gpus} GPUs, on {config.device}"
        )
    memory = {
        gpu: torch.cuda.get_device_properties(gpu).total_memory
        for gpu in range(int(config.gpus))
    }
    return {"device_map": "balanced", "max_memory": memory}
