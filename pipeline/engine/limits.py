"""The longest context that the engine runs rightly, read from a model's configuration.

In: a configuration of transformers. Out: a number of tokens, or a ModelError. The engine
gives every layer one mask in which a token sees its whole context, so a context must not
outgrow the shortest window of the attention. A rotation that changes with the length of a
batch would make the scores of a text depend on the texts beside it, so a context must not
reach the length at which it changes. checks.py runs the model past every other length that
the configuration names (docs/decisions/0023). No weights are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.engine.errors import ModelError

# The limit of a model whose configuration has none.
UNLIMITED = 2**31
# A self-check runs at most so many tokens.
REACH = 2_048

# Models call the number of their positions by one of these names.
_POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_target_positions",
    "max_context_len",
)
_SLIDING = (
    "sliding_window",
    "sliding_windows",
    "sliding_window_size",
    "window_size",
    "attention_window",
    "attention_window_size",
)
_CHUNKED = ("attention_chunk_size",)
_SELECTED = ("index_topk", "keep_window_size")
# A layer whose type contains the word does not see further than one of the fields says.
_WINDOWS_BY_LAYER = {
    "sliding": _SLIDING,
    "window": _SLIDING,
    "local": _SLIDING,
    "chunked": _CHUNKED,
    "indexed": _SELECTED,
    "sparse": _SELECTED,
    "compressed": _SELECTED,
}
# Models without types of layers have the same window in all layers, or none.
_WINDOWS = (*_SLIDING, *_CHUNKED, *_SELECTED)
# Layers whose type contains one of these words keep a state in place of keys and values.
_STATEFUL = ("linear", "conv", "mamba", "recurrent", "hybrid")
# Names of other numbers of tokens, at which a model may change what it does.
_NAMED_LENGTH = re.compile(
    "window|chunk|sliding|local_|original_max|floor|topk|block_size|context|span"
)
# These rotations are the same at every length, whatever length they were trained at.
_STATIC_ROTATIONS = frozenset(
    {"default", "linear", "yarn", "llama3", "proportional", "mrope"}
)


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the text model: a multimodal model has
    one for each kind of input."""
    return config.get_text_config(decoder=True)


def position_embeddings(config: Any) -> int:
    """The positions that the model has, in tokens, whatever its windows: training may use
    all of them."""
    return min(_numbers(text_config(config), _POSITIONS), default=UNLIMITED)


def max_positions(config: Any) -> int:
    """The longest context, in tokens, that the engine is exact for.

    Raises ModelError where layers have a window and the configuration does not say which,
    and where layers are no attention.
    """
    text = text_config(config)
    limits = [
        *_numbers(text, _POSITIONS),
        *_windows(text),
        *_rotation_switches(text),
    ]
    known = min(limits, default=UNLIMITED)
    # A length beyond the reach of the self-checks is a limit if it is called a window.
    unchecked = [
        length
        for name, length in _named_lengths(text)
        if "window" in name and length > REACH and not _is_ignored(text, name)
    ]
    return min([known, *unchecked])


def named_lengths(config: Any) -> list[int]:
    """All lengths, in tokens and ascending, at which the model may change what it does."""
    return sorted({length for _, length in _named_lengths(text_config(config))})


def require_tokenizer_fits(config: Any, tokenizer: Any) -> None:
    """Raises ModelError unless each token of the tokenizer has an embedding. No weights are
    read."""
    embeddings = text_config(config).vocab_size
    if len(tokenizer) > embeddings:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {embeddings} embeddings: "
            "use the tokenizer that the model was trained with"
        )


def _windows(text: Any) -> list[int]:
    """The windows of all layers that have one."""
    _require_attention(text)
    layer_types = _layer_types(text)
    if layer_types is None:
        declared = [name for name in _WINDOWS if _is_declared(text, name)]
        return _numbers(text, declared)
    windows = []
    for layer_type in sorted(set(layer_types)):
        fields = _window_fields(layer_type)
        numbers = _numbers(text, fields)
        if fields and not numbers:
            raise ModelError(
                f"{text.model_type}: layers of type {layer_type} do not see the whole "
                f"context, and the configuration has no {fields[0]}: add it to "
                "config.json, or use another model"
            )
        windows += numbers
    return windows


def _require_attention(text: Any) -> None:
    """Raises ModelError if a layer keeps a state in place of keys and values."""
    for layer_type in getattr(text, "layer_types", None) or ():
        if any(word in str(layer_type) for word in _STATEFUL):
            raise ModelError(
                f"{text.model_type}: layers of type {layer_type} keep a state in place of "
                "keys and values, which branches of a text cannot share; use a model whose "
                "layers are all attention (docs/architectures.md lists those that work)"
            )


def _window_fields(layer_type: str) -> tuple[str, ...]:
    for word, fields in _WINDOWS_BY_LAYER.items():
        if word in layer_type:
            return fields
    return ()


def _layer_types(text: Any) -> list[str] | None:
    """The type of each layer, if the model reads types of layers."""
    for name in ("layer_types", "attention_layers"):
        layer_types = getattr(text, name, None)
        if layer_types and _is_declared(text, name):
            return [str(layer_type) for layer_type in layer_types]
    return None


def _is_declared(text: Any, name: str) -> bool:
    """Whether the class of a configuration knows a field; others are never read."""
    fields = getattr(type(text), "__dataclass_fields__", {})
    # GPT Neo computes the types of its layers from a field of another name.
    return (
        name in fields
        or hasattr(type(text), name)
        or "attention_types" in fields
    )


def _is_ignored(text: Any, name: str) -> bool:
    """Whether `name` is the window of a type of layers that the model does not have."""
    return _is_declared(text, name) and _layer_types(text) is not None


def _rotation_switches(text: Any) -> list[int]:
    """The lengths of a batch from which on rotations change. Dynamic ones change at
    `max_position_embeddings`, which is a limit anyway."""
    switches = []
    for rotation in _rotations(text):
        if rotation.get("rope_type", rotation.get("type")) != "longrope":
            continue
        length = rotation.get(
            "original_max_position_embeddings",
            getattr(text, "original_max_position_embeddings", None),
        )
        if not _is_length(length):
            raise ModelError(
                f"{text.model_type}: its rotation (longrope) changes at a length that the "
                "configuration does not name: add original_max_position_embeddings to "
                "config.json, or use another model"
            )
        switches.append(length)
    return switches


def _rotations(text: Any) -> Iterator[Mapping[str, Any]]:
    """The parameters of rotations: one for all layers, or one for each type of layers."""
    parameters = getattr(text, "rope_parameters", None)
    if not isinstance(parameters, Mapping):
        return
    nested = [p for p in parameters.values() if isinstance(p, Mapping)]
    yield from nested or [parameters]


def _named_lengths(text: Any) -> Iterator[tuple[str, int]]:
    names = [name for name in vars(text) if _NAMED_LENGTH.search(name)]
    for name in names:
        if name == "original_max_position_embeddings" and not _switches(text):
            continue
        for length in _numbers(text, [name]):
            yield name, length
    for rotation in _rotations(text):
        named: Any = rotation.get("original_max_position_embeddings")
        kind = rotation.get("rope_type", "default")
        if _is_length(named) and kind not in _STATIC_ROTATIONS:
            yield "original_max_position_embeddings", int(named)


def _switches(text: Any) -> bool:
    kinds = {r.get("rope_type", "default") for r in _rotations(text)}
    return not kinds <= _STATIC_ROTATIONS


def _numbers(text: Any, names: Any) -> list[int]:
    """The lengths in these fields. Configurations say None, 0 or -1 where there is none."""
    lengths: list[int] = []
    for name in names:
        value = getattr(text, name, None)
        values: Any = value if isinstance(value, list | tuple) else [value]
        lengths += [int(number) for number in values if _is_length(number)]
    return lengths


def _is_length(value: Any) -> bool:
    # True is an integer to Python; some configurations write 4096.0.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 1 <= value < UNLIMITED
