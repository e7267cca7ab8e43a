"""Hugging Face checkpoints: the one place that calls `from_pretrained`.

In: a folder or a hub name, and the configuration field that holds it. Out: a tokenizer, a
configuration or a model. Weights come from safetensors only and no code of the checkpoint runs.
Every failure becomes the caller's error and names the field. Callers choose architectures.
Imports no torch, so that code without torch may load tokenizers and configurations.
"""

from __future__ import annotations

from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging
from transformers.utils.import_utils import is_torch_cuda_available

from tools_service.base.errors import ConfigurationError

_MAX_LISTED_WEIGHTS = 3


def load_tokenizer(path: str, field: str, error: type[ConfigurationError] = ConfigurationError) -> Any:
    """Load the tokenizer in `path`. Raises `error`, which names `field`."""
    return _from_pretrained(AutoTokenizer, path, field, error)


def load_config(path: str, field: str, error: type[ConfigurationError] = ConfigurationError) -> Any:
    """Load the configuration in `path` without its weights. Raises `error`, which names `field`."""
    return _from_pretrained(AutoConfig, path, field, error)


def load_model(
    auto_class: Any,
    path: str,
    field: str,
    *,
    dtype: str,
    error: type[ConfigurationError] = ConfigurationError,
    unused_weights: tuple[str, ...] = (),
    **options: Any,
) -> Any:
    """Load the model in `path` as `auto_class`, with weights of type `dtype`, on the CPU.

    `options` go to `from_pretrained`. Raises `error`, which names `field`, if the checkpoint cannot
    be loaded or lacks weights, other than those whose names start with one of `unused_weights`.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    options |= {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    model, report = _from_pretrained(auto_class, path, field, error, **options)

    # transformers fills missing weights with random numbers and only logs a warning.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(unused_weights))
    if missing:
        raise error(f"{field} {path!r}: no weights for {', '.join(missing[:_MAX_LISTED_WEIGHTS])}")
    return model


def resolve_device(device: str) -> str:
    """Return `device`; "auto" becomes "cuda" if there is a GPU, else "cpu"."""
    if device == "auto":
        return "cuda" if is_torch_cuda_available() else "cpu"
    return device


def _from_pretrained(
    auto_class: Any, path: str, field: str, error: type[ConfigurationError], **options: Any
) -> Any:
    try:
        return auto_class.from_pretrained(path, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as cause:
        raise error(f"{field} {path!r}: cannot load it: {cause}") from cause
