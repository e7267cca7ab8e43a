"""Linear layers on a CPU through oneDNN, with weights that are packed once.

torch runs float32 linear layers through MKL. On processors of other makers than Intel's, MKL may reach
half the rate that oneDNN reaches at the same precision; bfloat16 goes through oneDNN in any case, which
then reorders the weights at every call. `pack_linear_layers` lets the model's layers use oneDNN with
packed weights if that is faster (linear_choice.py) and as exact (docs/decisions/0039). In: a model for
inference. Out: the same model, its weights unchanged, with oneDNN's packed copies beside them. GPUs,
other data types and layers that are trained stay as they are.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools_service.base.errors import ConfigurationError
from tools_service.base.linear_choice import memory_for_copies, packed_is_faster

logger = logging.getLogger(__name__)

VARIABLE = "TOOLFORMER_LINEAR"
"""auto (the default) measures; plain never packs; packed packs wherever oneDNN is exact."""

MAX_RELATIVE_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
"""Of the largest number: rounding in the layers' type, and no more."""

_CHECKED_TOKENS = 16


def pack_linear_layers(model: nn.Module) -> bool:
    """Let the linear layers of `model` use oneDNN, if that pays; return whether they do.

    Raises ConfigurationError for an unknown value of the variable.
    """
    choice = os.environ.get(VARIABLE) or "auto"
    if choice not in ("auto", "plain", "packed"):
        raise ConfigurationError(f"{VARIABLE} = {choice!r}: write auto, plain or packed")
    layers = [each for each in model.modules() if isinstance(each, nn.Linear) and _can_be_packed(each)]
    if choice == "plain" or not layers:
        return False
    copies, limit = sum(layer.weight.nbytes for layer in layers), memory_for_copies()
    if copies > limit:
        logger.info("linear layers stay unpacked: %d MiB of copies, %d allowed", copies >> 20, limit >> 20)
        return False
    try:
        if choice == "auto" and not packed_is_faster(layers, _ways):
            return False
        forwards = [_Packed(layer) for layer in layers]
        if not all(map(_is_exact, layers, forwards)):
            return False
    except (AttributeError, RuntimeError) as error:  # a torch without the operator, or with another one
        logger.warning("linear layers stay unpacked: %s", str(error).partition("\n")[0])
        return False
    for layer, forward in zip(layers, forwards, strict=True):
        layer.forward = forward  # type: ignore[method-assign,assignment]
    return True


def unpack_linear_layers(model: nn.Module) -> None:
    """Undo `pack_linear_layers`: the layers run torch's own path again, and the copies are freed."""
    for layer in model.modules():
        if isinstance(vars(layer).get("forward"), _Packed):
            del layer.forward


def onednn_takes(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there and has packed layers of `dtype`: bfloat16 needs AVX-512 or its like."""
    if dtype not in MAX_RELATIVE_ERROR or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype is not torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in] times the transposed weight, plus bias: [..., out]. `packed` is weight.to_mkldnn()."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return result


def _can_be_packed(layer: nn.Linear) -> bool:
    # Not a subclass: it may compute something else.
    if type(layer) is not nn.Linear:
        return False
    weight = layer.weight
    can_be_run = weight.device.type == "cpu" and onednn_takes(weight.dtype)
    # The version of an inference tensor, by which a change is noticed, is not counted.
    return can_be_run and weight.numel() > 0 and not weight.is_inference()


class _Packed:
    """What a layer computes, through oneDNN as long as its weight is the one that was packed.

    A change through `weight.data`, which torch does not count, is not noticed. In a copy of the
    model, the layer runs torch's own path.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self.weight = layer.weight
        self.packed = layer.weight.detach().to_mkldnn()
        self.state = self._state()

    def _state(self) -> tuple[int, int]:
        return self.weight.data_ptr(), self.weight._version

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        unchanged = layer.weight is self.weight and self._state() == self.state
        # The operator has no gradient, and takes no empty batch.
        if not unchanged or torch.is_grad_enabled() or x.dtype != self.weight.dtype or not x.numel():
            return F.linear(x, layer.weight, layer.bias)
        return packed_linear(x, self.packed, layer.bias)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[[Tensor], Tensor]:
        return partial(nn.Linear.forward, deepcopy(self.layer, memo))


def _ways(layer: nn.Linear) -> tuple[Callable[[Tensor], Any], Callable[[Tensor], Any]]:
    """The layer through MKL, or oneDNN without packing, and through oneDNN with packed weights."""
    return partial(F.linear, weight=layer.weight, bias=layer.bias), _Packed(layer)


@torch.inference_mode()
def _is_exact(layer: nn.Linear, forward: Callable[[Tensor], Tensor]) -> bool:
    """Whether both ways differ by rounding in their type only; an operator may round to bfloat16."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_CHECKED_TOKENS, layer.in_features, generator=generator).to(layer.weight.dtype)
    plain, packed = F.linear(x, layer.weight, layer.bias), forward(x)
    error = float((packed - plain).abs().max())
    # A comparison that NaN fails.
    return error <= MAX_RELATIVE_ERROR[x.dtype] * float(plain.abs().max())
