"""Hugging Face checkpoints: the one place that calls `from_pretrained`.

In: a folder or hub name, and the configuration field that named it. Out: a tokenizer, a configuration or a
model. Weights come from safetensors only, no code from the checkpoint is run, and every failure becomes the
caller's error with the field in front. Which architectures are usable is decided by the callers. This
module does not import torch itself, so that code without torch may load tokenizers and configurations.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging
from transformers.utils.import_utils import is_torch_cuda_available

from tools_service.base.errors import ConfigurationError

_SHOWN_WEIGHTS = 3  # names of missing weights in an error message


def load_tokenizer(path: str, field: str, error: type[ConfigurationError] = ConfigurationError) -> Any:
    """The tokenizer in folder or hub repository `path`. Raises `error`, naming `field`."""
    return _pretrained(AutoTokenizer, path, field, error)


def load_config(path: str, field: str, error: type[ConfigurationError] = ConfigurationError) -> Any:
    """The configuration in `path`; no weights are read. Raises `error`, naming `field`."""
    return _pretrained(AutoConfig, path, field, error)


def load_model(
    auto_class: Any,
    path: str,
    field: str,
    *,
    dtype: str,
    error: type[ConfigurationError] = ConfigurationError,
    **options: Any,
) -> Any:
    """The model of `auto_class` in `path`, with weights of type `dtype`.

    `options` go to `from_pretrained`. Raises `error`, naming `field`, also if weights are missing.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    options |= {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    model, report = _pretrained(auto_class, path, field, error, **options)
    if missing := sorted(report["missing_keys"]):
        raise error(f"{field} {path!r}: no weights for {', '.join(missing[:_SHOWN_WEIGHTS])}")
    return model


def resolve_device(device: str) -> str:
    """ "auto" is a GPU where there is one, else the CPU."""
    if device == "auto":
        return "cuda" if is_torch_cuda_available() else "cpu"
    return device


def _pretrained(
    auto_class: Any, path: str, field: str, error: type[ConfigurationError], **options: Any
) -> Any:
    from safetensors import SafetensorError

    try:
        return auto_class.from_pretrained(path, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as cause:
        raise error(f"{field} {path!r}: cannot load it: {cause}") from cause
