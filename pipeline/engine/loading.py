"""A causal LM and its tokenizer from a folder or a hub name, on the device or devices it shall run on.

In: a `ModelConfig`. Out: the model and its tokenizer. Weights come from safetensors only, and no code comes
from the folder. A model that one GPU cannot hold is spread over several, some layers on each (transformers'
device_map): they take turns, so this buys memory, not speed. Whether the engine runs the model rightly is
checked afterwards (probe.py).
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from pipeline.base.config import ModelConfig
from pipeline.base.cost import ModelShape
from pipeline.engine.checks import check_head, check_packing, check_tree
from pipeline.engine.compiling import compile_parts
from pipeline.engine.errors import ModelError
from pipeline.engine.memory import profile_max_batch_tokens
from pipeline.engine.model import LanguageModel

logger = logging.getLogger(__name__)


def load_language_model(config: ModelConfig) -> LanguageModel:
    """Load, check and profile the model at `config.path`. Raises ModelError."""
    model, tokenizer = load_causal_lm(config)
    return prepare_language_model(model, tokenizer, config.max_batch_tokens)


def prepare_language_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_batch_tokens: int | None = None
) -> LanguageModel:
    """Build the engine around a loaded model, check it, and measure what fits on a GPU.

    Raises ModelError if the model does not do what the engine relies on, TokenizerError likewise.
    """
    engine = LanguageModel(model, tokenizer, max_batch_tokens)
    engine.separate_head = check_head(engine)
    check_tree(engine)
    engine.packs = check_packing(engine)
    if max_batch_tokens is None and engine.device.type == "cuda":
        engine.max_batch_tokens = profile_max_batch_tokens(engine)
    engine.usage.clear()
    return engine


def load_causal_lm(config: ModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Raises ModelError for what cannot be loaded, and for devices that are not there."""
    device, placement = _device(config), _placement(config)
    if device == "cpu" and config.dtype == "bfloat16" and not _multiplies_bfloat16():
        logger.warning("model.dtype bfloat16: this processor has no BF16 arithmetic, float32 is faster on it")
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.path, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            config.path,
            dtype=getattr(torch, config.dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **placement,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"model.path {config.path!r}: cannot load it: {error}") from error
    model, report = loaded
    if absent := sorted(report["missing_keys"]):
        raise ModelError(f"model.path {config.path!r}: no weights for {', '.join(absent[:3])}")
    if not placement:
        model = model.to(device)
    if config.compile and not placement:
        compile_parts(model)
    elif config.compile:
        logger.warning("model.compile: nothing is compiled of a model that is spread over GPUs")
    if device == "cuda":
        # cuDNN's attention plans anew for each shape, and every step of drawing has another.
        torch.backends.cuda.enable_cudnn_sdp(False)
    return model, tokenizer


def model_shape(path: str) -> ModelShape:
    """The shape of the model in a folder or on the hub: its configuration is read, its weights are not."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    return ModelShape.of(model)


def _multiplies_bfloat16() -> bool:
    return any(there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name)


def _device(config: ModelConfig) -> str:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("model.device cuda: this process sees no GPU; auto or cpu run on the CPU")
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def _placement(config: ModelConfig) -> dict[str, Any]:
    """What from_pretrained needs to spread the layers; nothing for one device."""
    if config.gpus == 1:
        return {}
    there = torch.cuda.device_count()
    if config.device == "cpu" or there < config.gpus:
        raise ModelError(f"model.gpus = {config.gpus}: this process sees {there} GPUs, on {config.device}")
    memory = {gpu: torch.cuda.get_device_properties(gpu).total_memory for gpu in range(config.gpus)}
    return {"device_map": "balanced", "max_memory": memory}
