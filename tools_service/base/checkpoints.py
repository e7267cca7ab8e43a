"""Hugging Face checkpoints: the one place that calls `from_pretrained` and `from_config`.

In: a folder or a hub name, and the configuration field that holds it. Out: a tokenizer, a configuration or
a model. A model of the hub is read from where `toolformer fetch` has staged it. A checkpoint is data of a
stranger: weights come from safetensors only, no code of it runs, and it names neither a kernel to fetch nor
a quantization library to import. A folder with a LoRA adapter is its base model with the adapter added
(adapters.py). Every failure becomes the caller's error and names the field. Callers choose architectures.
Imports no torch, so that code without torch may load tokenizers and configurations.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging
from transformers.utils.import_utils import is_torch_cuda_available
from transformers.utils.peft_utils import find_adapter_config_file

from tools_service.base.adapters import Adapter, base_field, model_inputs, read_adapter, require_base
from tools_service.base.errors import ConfigurationError
from tools_service.base.model_folder import (
    TO_SAFETENSORS,
    check_model_folder,
    has_tokenizer,
    may_be_hub_name,
)
from tools_service.base.staged_models import read_staged, staged_source
from tools_service.base.weights import (
    WeightsError,
    listed_files,
    require_floating,
    require_headers,
    require_unchanged,
    tensors,
    weight_files,
    weight_numbers,
)

logger = logging.getLogger(__name__)

_MAX_LISTED_WEIGHTS = 3
_MAX_CAUSE = 300  # characters of a foreign message
# Constants that transformers once saved and now computes.
_OLD_BUFFERS: tuple[str, ...] = (
    "inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".position_ids",
)
_OLD_BUFFERS += (".attention.masked_bias", ".embed_positions", ".causal_mask", ".attn_bias")
# While transformers makes a model, it replaces functions of torch and of its own for the whole process.
_ONE_AT_A_TIME = threading.RLock()
# What a configuration may ask for. Every other name is code that transformers would fetch or import.
_IMPLEMENTATIONS = {
    "_attn_implementation": ("eager", "sdpa"),
    "_experts_implementation": ("eager", "batched_mm", "grouped_mm"),
}


def load_tokenizer(
    path: str,
    field: str,
    error: type[ConfigurationError] = ConfigurationError,
    *,
    revision: str | None = None,
) -> Any:
    """Load the tokenizer in `path`, of an adapter without one that of its base. Raises `error`, which names
    `field`."""
    path = staged_source(path, revision)
    adapter = read_adapter(path, field, error)
    if adapter and not has_tokenizer(adapter.folder):
        return load_tokenizer(adapter.base, base_field(path, field), error, revision=adapter.revision)
    check_model_folder(path, field, "tokenizer", error)
    with _loading(path, field, error):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, revision=revision)
        tokenizer("a")  # what its settings break shows at the first use
        return tokenizer


def load_generation_config(path: str) -> Any:
    """The generation configuration in `path`, a folder or a hub name; None if there is none."""
    try:
        return GenerationConfig.from_pretrained(staged_source(path), trust_remote_code=False)
    except OSError:
        return None


def load_config(
    path: str,
    field: str,
    error: type[ConfigurationError] = ConfigurationError,
    *,
    revision: str | None = None,
) -> Any:
    """Load the configuration in `path`, of an adapter that of its base, without weights.

    Raises `error`, which names `field`. An attention or experts implementation other than
    transformers' own eager and sdpa becomes the default, with a warning. Quantized weights are
    refused, and adapters of the hub.
    """
    path = staged_source(path, revision)
    if adapter := read_adapter(path, field, error):
        return load_config(adapter.base, base_field(path, field), error, revision=adapter.revision)
    check_model_folder(path, field, "config", error)
    with _loading(path, field, error):
        # transformers would have PEFT load it, with whatever its configuration asks for.
        if may_be_hub_name(path) and find_adapter_config_file(path, revision=revision):
            raise OSError(f"it is an adapter; `hf download {path} --local-dir FOLDER`, and name the folder")
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, revision=revision)
        if staged := read_staged(Path(path)):
            config._commit_hash = staged.commit  # as if it came from the hub
        quantized = _names_quantization(config.to_dict())
    if quantized:
        raise error(f"{field} {path!r}: quantized weights are not supported; use the original checkpoint")
    for name, known in _IMPLEMENTATIONS.items():
        asked = getattr(config, name)
        if asked is not None and asked not in known:
            logger.warning(
                "%s %r: config.json asks for %s = %r, the default is used", field, path, name, asked
            )
        # The setter hands the value on to the configurations inside this one.
        setattr(config, name, asked if asked in known else None)
    return config


def load_model(
    auto_class: Any,
    path: str,
    field: str,
    *,
    dtype: str,
    error: type[ConfigurationError] = ConfigurationError,
    unused_weights: tuple[str, ...] = (),
    gathered: Callable[[Any], AbstractContextManager[object]] = nullcontext,
    **options: Any,
) -> Any:
    """Load the model in `path` as `auto_class`, with weights of type `dtype`, on the CPU.

    An adapter is added to the weights of its base; `gathered` makes a weight whole for that, if
    weights are sharded. `options` go to `from_pretrained`. Raises `error`, which names `field`, if the
    checkpoint cannot be loaded, is no longer what its manifest.json says, lacks weights (other than
    those whose names start with one of `unused_weights`), has them in another shape, or has more of
    them.
    """
    path = staged_source(path, options.get("revision"))
    if adapter := read_adapter(path, field, error):
        from tools_service.base.adapter_weights import add_adapter  # imports torch

        base = load_base(auto_class, adapter, field, dtype=dtype, error=error, **options)
        with _loading(path, field, error):
            require_unchanged(adapter.folder, listed_files(adapter.folder))
            require_floating(adapter.folder, buffers=())
            add_adapter(base, adapter, gathered)
        return base
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    config = load_config(path, field, error, revision=options.get("revision"))
    stored_numbers(path, field, error)
    with _loading(path, field, error):
        require_unchanged(Path(path), listed_files(Path(path)))
        with _ONE_AT_A_TIME:
            model, report = auto_class.from_pretrained(
                path,
                config=config,
                trust_remote_code=False,
                attn_implementation=config._attn_implementation,
                experts_implementation=config._experts_implementation,
                use_kernels=False,
                use_safetensors=True,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, in one sentence
                **options,
            )

    # transformers fills missing weights with random numbers and only logs a warning.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(unused_weights))
    if missing:
        raise error(f"{field} {path!r}: no weights for {', '.join(missing[:_MAX_LISTED_WEIGHTS])}")
    for name, stored, expected in sorted(report["mismatched_keys"]):
        shapes = f"{list(stored)} instead of {list(expected)}"
        raise error(f"{field} {path!r}: the weights of {name} have the shape {shapes}")
    # A model without its head has no use for the weights of heads.
    unused = [] if auto_class.__name__ == "AutoModel" else _unused(report["unexpected_keys"])
    if unused:
        raise error(
            f"{field} {path!r}: {len(unused)} weights have no place in the model that config.json describes, "
            f"the first is {unused[0]}; config.json and the weights are not of one model"
        )
    return model


def load_base(
    auto_class: Any,
    adapter: Adapter,
    field: str,
    *,
    dtype: str,
    error: type[ConfigurationError] = ConfigurationError,
    **options: Any,
) -> Any:
    """The model that `adapter` was trained on, without the adapter. Raises `error`, as `load_model` does."""
    path = str(adapter.folder)
    with _loading(path, field, error):
        require_base(adapter)
    named = base_field(path, field)
    options["revision"] = adapter.revision
    return load_model(auto_class, adapter.base, named, dtype=dtype, error=error, **options)


def stored_numbers(path: str, field: str, error: type[ConfigurationError] = ConfigurationError) -> int:
    """How many numbers the weights in `path` hold together, by the headers of their files; 0 for a hub name.

    Of an adapter, those of its base. Raises `error`, which names `field`, if the files are damaged or
    hold quantized weights.
    """
    path = staged_source(path)
    if adapter := read_adapter(path, field, error):
        return stored_numbers(adapter.base, base_field(path, field), error)
    check_model_folder(path, field, "weights", error)
    with _loading(path, field, error):
        if not weight_files(Path(path)):
            return 0
        require_headers(Path(path))  # names the file, as transformers does not
        require_floating(Path(path), buffers=_OLD_BUFFERS)
        return weight_numbers(Path(path))


def _unused(names: Iterable[str]) -> list[str]:
    """Names of weights that the model lacks, sorted, without buffers that old versions saved."""
    return sorted(name for name in names if not name.endswith(_OLD_BUFFERS))


def empty_model(auto_class: Any, config: Any) -> Any:
    """The model of a configuration that `load_config` returned, on the current default device."""
    with _ONE_AT_A_TIME:
        return auto_class.from_config(
            config, trust_remote_code=False, attn_implementation=config._attn_implementation
        )


def require_whole(
    auto_class: Any,
    path: str,
    field: str,
    error: type[ConfigurationError] = ConfigurationError,
    unused_weights: tuple[str, ...] = (),
) -> None:
    """Load the folder `path` strictly, one tensor in memory at a time: names, shapes, finite numbers.

    An adapter's base is loaded, too. Raises `error`, which names `field` and the first tensor that is
    missing, empty, of another shape or not finite.
    """
    path = staged_source(path)
    whole: dict[str, Any] = {"dtype": "auto", "device_map": "meta"}
    load_model(auto_class, path, field, error=error, unused_weights=unused_weights, **whole)
    with _loading(path, field, error):
        stored = (pair for folder in model_inputs(path, field) for pair in tensors(Path(folder)))
        for name, tensor in stored:
            if not tensor.numel():
                raise WeightsError(f"the tensor {name} is empty")
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise WeightsError(f"the tensor {name} holds numbers that are not finite")


def resolve_device(device: str, field: str, error: type[ConfigurationError] = ConfigurationError) -> str:
    """Return `device`; "auto" becomes "cuda" if there is a GPU, else "cpu".

    Raises `error`, which names `field`, if it is "cuda" and there is no GPU.
    """
    has_gpu = is_torch_cuda_available()
    if device == "cuda" and not has_gpu:
        raise error(f"{field} cuda: this process sees no GPU; auto or cpu run on the CPU")
    return ("cuda" if has_gpu else "cpu") if device == "auto" else device


@contextmanager
def _loading(path: str, field: str, error: type[ConfigurationError]) -> Iterator[None]:
    """Turn every exception of the block into `error`: what a folder holds can make anything fail."""
    hub_logger = logging.getLogger("huggingface_hub")
    level, hub_level = transformers_logging.get_verbosity(), hub_logger.level
    hub_logger.setLevel(logging.ERROR)  # a warning for each attempt to connect
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # what matters is raised
    try:
        yield
    except Exception as cause:
        raise error(f"{field} {path!r}: cannot load it: {_in_short(cause, path)}") from cause
    finally:
        transformers_logging.set_verbosity(level)
        hub_logger.setLevel(hub_level)


def _in_short(cause: Exception, path: str) -> str:
    text = " ".join(str(cause).split()) or type(cause).__name__
    if "couldn't connect to" in text:
        return (
            "there is no such folder, and the hub cannot be reached for a model of that name; name a folder, "
            "or load the model where there is a connection"
        )
    if "safetensors" in text and "does not appear to have" in text:
        return f"it has no weights in safetensors; {TO_SAFETENSORS.format(path)}"
    if "trust_remote_code" in text:
        return "it needs code of its own (auto_map), which is never run; use an architecture of transformers"
    kind, unrecognized, rest = text.partition("for this kind of AutoModel: ")
    if unrecognized:
        found, wanted = kind.rpartition(".")[2].partition("'")[0], rest.partition(".")[0]
        return f"it is a model of another kind ({found} is none of {wanted})"
    if not isinstance(cause, OSError | ValueError):
        text = f"{type(cause).__name__}: {text}"  # as in "KeyError: 'rope_theta'"
    return text if len(text) <= _MAX_CAUSE else f"{text[:_MAX_CAUSE]} …"


def _names_quantization(config: Any) -> bool:
    if isinstance(config, dict):
        named = config.get("quantization_config") or config.get("compression_config")
        return bool(named) or any(map(_names_quantization, config.values()))
    return isinstance(config, list) and any(map(_names_quantization, config))
