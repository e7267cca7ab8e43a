"""A LoRA adapter and the weights of its base model (arXiv 2106.09685).

In: a loaded base model and an Adapter (adapters.py). Out: the same model with scale * B A added to the
weights of its layers, so that it is a model like any other. The product and the sum are float32; the
result has the type of the weights. Shapes and names that do not fit are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from tools_service.base.adapters import Adapter
from tools_service.base.weights import ADAPTER_WEIGHTS, WeightsError, tensors

_NAME = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<matrix>[AB])\.weight")

Pair = tuple[torch.Tensor, torch.Tensor]
"""A [rank, inputs] and B [outputs, rank] of a layer."""


def adapter_matrices(adapter: Adapter) -> dict[str, Pair]:
    """A and B by the name of their layer. Raises WeightsError."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in tensors(adapter.folder):
        match = _NAME.fullmatch(name)
        if match is None:
            raise WeightsError(
                f"the tensor {name} of {ADAPTER_WEIGHTS} is no matrix of LoRA on a linear layer"
            )
        found.setdefault(match["layer"], {})[match["matrix"]] = value
    pairs = {}
    for layer, matrices in found.items():
        if len(matrices) < 2:
            raise WeightsError(f"{ADAPTER_WEIGHTS} has one matrix for {layer} and lacks the other")
        a, b = matrices["A"], matrices["B"]
        if a.ndim != 2 or b.ndim != 2 or not a.shape[0] == b.shape[1] == adapter.rank:
            shapes = f"{list(a.shape)} and {list(b.shape)}"
            raise WeightsError(
                f"the matrices for {layer} have the shapes {shapes}, not those of r = {adapter.rank}"
            )
        pairs[layer] = a, b
    if not pairs:
        raise WeightsError(f"{ADAPTER_WEIGHTS} holds no tensors")
    return pairs


@torch.no_grad()
def add_adapter(
    model: Any,
    adapter: Adapter,
    gathered: Callable[[torch.Tensor], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Add the adapter to the weights of `model`, in place. Raises WeightsError for what does not fit.

    `gathered` makes a weight whole that is sharded over processes (ZeRO stage 3).
    """
    layers = dict(model.named_modules())
    pairs = adapter_matrices(adapter)
    require_layers(model, pairs)
    for name, (a, b) in pairs.items():
        layer = layers[name]
        with gathered(layer.weight):
            update = adapter.scale * (b.float() @ a.float())  # [outputs, inputs]
            if isinstance(layer, Conv1D):
                update = update.T
            if update.shape != layer.weight.shape:
                raise WeightsError(
                    f"the adapter of {name} has the shape {list(update.shape)}, and the base model's weight "
                    f"{list(layer.weight.shape)}"
                )
            layer.weight.copy_(layer.weight.float() + update.to(layer.weight.device))


def require_layers(model: Any, names: Iterable[str]) -> None:
    """Raise WeightsError unless each of `names` is a linear layer of `model` with a weight of its own."""
    layers, embeddings = dict(model.named_modules()), model.get_input_embeddings()
    for name in names:
        layer = layers.get(name)
        if not isinstance(layer, torch.nn.Linear | Conv1D):
            raise WeightsError(f"the base model has no linear layer {name}, which the adapter changes")
        if layer.weight is getattr(embeddings, "weight", None):
            raise WeightsError(
                f"the weight of {name} is also that of the embeddings, which an adapter cannot change"
            )
