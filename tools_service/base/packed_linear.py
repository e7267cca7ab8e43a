"""Linear layers on a CPU through oneDNN, with weights that are packed once.

torch runs float32 linear layers through MKL. On processors of other makers than Intel's, MKL may reach
half the rate that oneDNN reaches at the same precision. `pack_linear_layers` measures both and lets
the model's layers use oneDNN if it is clearly faster and as exact (docs/decisions/0039). In: a model
for inference. Out: the same model, its weights unchanged, with oneDNN's packed copies beside them.
GPUs, other data types and layers that are trained stay as they are.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools_service.base.errors import ConfigurationError

logger = logging.getLogger(__name__)

VARIABLE = "TOOLFORMER_LINEAR"
"""auto (the default) measures; plain never packs; packed packs wherever oneDNN is exact."""

# Well above the noise of the measurement: all processes of a machine must choose alike, because rows of
# a resumed run equal those of an undisturbed run to the last bit.
MIN_SPEEDUP = 1.3
MAX_RELATIVE_ERROR = 1e-5
MAX_PACKED_BYTES = 2 * 2**30
"""A larger model would need too much memory for the copies."""

_ROUNDS = 15
_MEASURED_FLOPS = 2e8
_MIN_TOKENS, _MAX_TOKENS = 16, 256


def pack_linear_layers(model: nn.Module) -> bool:
    """Let the float32 linear layers of `model` use oneDNN, if that pays; return whether they do.

    Raises ConfigurationError for an unknown value of the variable.
    """
    choice = os.environ.get(VARIABLE) or "auto"
    if choice not in ("auto", "plain", "packed"):
        raise ConfigurationError(f"{VARIABLE} = {choice!r}: write auto, plain or packed")
    layers = [each for each in model.modules() if isinstance(each, nn.Linear) and _can_be_packed(each)]
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if choice == "plain" or not layers or not has_onednn:
        return False
    if sum(layer.weight.nbytes for layer in layers) > MAX_PACKED_BYTES:
        logger.info("linear layers stay unpacked: their copies would take more than 2 GiB")
        return False
    try:
        if choice == "auto" and _speedup(_typical(layers)) < MIN_SPEEDUP:
            return False
        forwards = [_packed_forward(layer) for layer in layers]
        if not all(map(_is_exact, layers, forwards)):
            return False
    except (AttributeError, RuntimeError) as error:  # a torch without the operator, or with another one
        logger.warning("linear layers stay unpacked: %s", str(error).partition("\n")[0])
        return False
    for layer, forward in zip(layers, forwards, strict=True):
        layer.forward = forward  # type: ignore[method-assign,assignment]
    return True


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in] times the transposed weight, plus bias: [..., out]. `packed` is weight.to_mkldnn()."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return result


def _can_be_packed(layer: nn.Linear) -> bool:
    # Not a subclass: it may compute something else.
    if type(layer) is not nn.Linear:
        return False
    weight = layer.weight
    is_cpu_float = weight.device.type == "cpu" and weight.dtype == torch.float32
    # The version of an inference tensor, by which a change is noticed, is not counted.
    return is_cpu_float and weight.numel() > 0 and not weight.is_inference()


def _packed_forward(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    """What the layer computes, through oneDNN as long as its weight is the one that was packed.

    A change through `weight.data`, which torch does not count, is not noticed.
    """
    weight = layer.weight
    packed = weight.detach().to_mkldnn()
    state = weight.data_ptr(), weight._version

    def forward(x: Tensor) -> Tensor:
        unchanged = layer.weight is weight and (weight.data_ptr(), weight._version) == state
        # The operator has no gradient, and takes no empty batch.
        if not unchanged or torch.is_grad_enabled() or x.dtype != torch.float32 or not x.numel():
            return F.linear(x, layer.weight, layer.bias)
        return packed_linear(x, packed, layer.bias)

    return forward


def _typical(layers: Sequence[nn.Linear]) -> nn.Linear:
    """The layer of middle size: output embeddings are few and large."""
    return sorted(layers, key=lambda layer: layer.weight.numel())[len(layers) // 2]


@torch.inference_mode()
def _speedup(layer: nn.Linear) -> float:
    """How many times as fast as MKL oneDNN is; the best of several runs of each, in turns."""
    tokens = _MEASURED_FLOPS / (2 * layer.weight.numel())
    x = torch.ones(int(min(max(tokens, _MIN_TOKENS), _MAX_TOKENS)), layer.in_features)
    packed = layer.weight.detach().to_mkldnn()
    best = [float("inf"), float("inf")]
    for round_and_way in range(2 * _ROUNDS):
        way = round_and_way % 2
        started = time.perf_counter()
        if way == 0:
            F.linear(x, layer.weight, layer.bias)
        else:
            packed_linear(x, packed, layer.bias)
        best[way] = min(best[way], time.perf_counter() - started)
    return best[0] / best[1]


@torch.inference_mode()
def _is_exact(layer: nn.Linear, forward: Callable[[Tensor], Tensor]) -> bool:
    """Whether both ways differ by rounding in float32 only; an operator may round to bfloat16."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_MIN_TOKENS, layer.in_features, generator=generator)
    plain, packed = F.linear(x, layer.weight, layer.bias), forward(x)
    error = float((packed - plain).abs().max())
    # A comparison that NaN fails.
    return error <= MAX_RELATIVE_ERROR * float(plain.abs().max())
