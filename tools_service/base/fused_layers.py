"""Layers outside attention with fewer passes over memory: norms, MLPs, rotary positions.

transformers writes these as chains of operators, each of which reads and writes all activations.
`fuse_layers` replaces the forward of a module by a shorter one where the module's parts, and a
comparison on random numbers, show that both compute the same (docs/decisions/0048):

- RMSNorm becomes torch's `rms_norm`;
- an MLP of two linear layers, or of three with a gate, applies its activation in place, and on a CPU
  runs the tokens in pieces whose activations stay in the cache;
- rotary positions are applied with fused multiplications and additions.

In: a transformers model for inference. Out: the same model with the same weights. Modules that look
or compute otherwise stay as they are, and so does every module where gradients are wanted.

Shapes: N tokens, D hidden, I intermediate, H heads, E head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

PIECE = 1_024
"""Tokens that an MLP runs at once on a CPU. More do not make its matrix products faster."""

_ROTARY = "apply_rotary_pos_emb"
# What a module that is not what it looks like may raise.
_UNSUPPORTED = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}

Forward = Callable[..., Any]


def fuse_layers(model: nn.Module) -> int:
    """Replace the forward of each norm, MLP and attention of `model` that can be shorter; how many."""
    fused = 0
    for module in model.modules():
        # A forward of its own is another's: hooks of a model that is spread over GPUs, for example.
        if "forward" in vars(module) or module._compiled_call_impl is not None:
            continue
        forward = _rms_norm(module) or _mlp(module) or _rotary_attention(module)
        if forward is not None:
            module.forward = _Fused(module, forward)
            fused += 1
    return fused


def unfuse_layers(model: nn.Module) -> None:
    """Give the modules their own forwards back."""
    for module in model.modules():
        if isinstance(vars(module).get("forward"), _Fused):
            del module.forward


class _Fused:
    """The shorter forward for inference, and the module's own where gradients are wanted.

    Objects and not closures: a copy of the model must run with the weights of the copy.
    """

    def __init__(self, module: nn.Module, forward: Forward) -> None:
        self.module = module
        self.forward = forward

    def __call__(self, *args: Any, **options: Any) -> Any:
        # A second input, as the gate of some norms, is not what was compared.
        is_other = (len(args), len(options)) != (1, 0) and not isinstance(self.forward, MethodType)
        if torch.is_grad_enabled() or self.module.training or is_other:
            return type(self.module).forward(self.module, *args, **options)
        return self.forward(*args, **options)


def _rms_norm(norm: nn.Module) -> Forward | None:
    """torch's rms_norm for a module that computes just that; Gemma's adds 1 to the weight."""
    weight: Any = getattr(norm, "weight", None)
    eps: Any = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    is_candidate = isinstance(weight, Tensor) and weight.dim() == 1 and isinstance(eps, float)
    if not is_candidate or isinstance(norm, nn.LayerNorm | nn.RMSNorm) or list(norm.children()):
        return None
    forward = partial(_run_rms_norm, norm, eps)
    # Numbers near the square root of eps show whether it is used alike.
    scale = max(eps, 1e-12) ** 0.5
    same = all(_agrees(norm, forward, len(weight), weight, factor) for factor in (1.0, scale))
    return forward if same else None


def _run_rms_norm(norm: Any, eps: float, x: Tensor) -> Tensor:  # [..., D]
    return F.rms_norm(x, norm.weight.shape, norm.weight, eps)


def _mlp(mlp: nn.Module) -> Forward | None:
    """An MLP of two linear layers, or of three with a gate, in place and in pieces."""
    children = [child for child in mlp.children() if not isinstance(child, nn.Dropout)]
    linear = [child for child in children if isinstance(child, nn.Linear | Conv1D)]
    other = [child for child in children if child not in linear]
    if len(other) != 1 or len(linear) not in (2, 3) or list(other[0].parameters()):
        return None
    activation = _in_place(other[0])
    if activation is None:
        return None
    first = linear[0]
    features = first.nx if isinstance(first, Conv1D) else first.in_features
    forward = partial(_in_pieces, partial(_run_mlp, linear, activation))
    return forward if _agrees(mlp, forward, features, first.weight) else None


def _run_mlp(linear: Sequence[nn.Module], activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`linear`: the first layer, the layer that it gates, if any, and the last."""
    first, *gated, last = linear
    hidden = activation(first(x))  # [..., I]
    for layer in gated:
        hidden = hidden.mul_(layer(x))
    result: Tensor = last(hidden)
    return result


def _in_pieces(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`run` on at most PIECE tokens at a time: pages of large activations are costly to get."""
    if x.is_cuda or x.numel() <= PIECE * x.shape[-1]:
        return run(x)
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    tokens = torch.split(x.reshape(-1, x.shape[-1]), PIECE)
    outputs = torch.split(result.view(-1, x.shape[-1]), PIECE)
    for output, part in zip(outputs, tokens, strict=True):
        output.copy_(run(part))
    return result


def _silu_(x: Tensor) -> Tensor:
    return F.silu(x, inplace=True)


def _gelu_(x: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.gelu_(x)
    return result


def _gelu_tanh_(x: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.gelu_(x, approximate="tanh")
    return result


def _in_place(activation: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The operator of torch that computes `activation`, in place; None if there is none."""
    x = torch.linspace(-8, 8, 321)
    with torch.inference_mode():
        try:
            expected = activation(x.clone())
            for operator in (_silu_, _gelu_tanh_, _gelu_, torch.relu_):
                if torch.allclose(operator(x.clone()), expected, rtol=1e-5, atol=2e-6):
                    return operator
        except _UNSUPPORTED:
            pass
    return None


def _rotary_attention(attention: nn.Module) -> Forward | None:
    """The attention's own forward, with `_rotate` in place of transformers' function."""
    own = type(attention).forward
    if not isinstance(own, FunctionType) or own.__closure__ or _ROTARY not in own.__code__.co_names:
        return None
    function = own.__globals__.get(_ROTARY)
    if function is None or not _rotates_alike(function):
        return None
    scope = own.__globals__ | {_ROTARY: partial(_rotate, function)}
    copied = FunctionType(own.__code__, scope, own.__name__, own.__defaults__)
    copied.__kwdefaults__ = own.__kwdefaults__
    return MethodType(copied, attention)


def _rotate(
    function: Forward,
    q: Tensor,  # [B, H, N, E]
    k: Tensor,
    cos: Tensor,  # [B, N, E]
    sin: Tensor,
    *args: Any,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Rotate the halves of each head; `function` is transformers', for anything unusual."""
    if args or options or cos.shape[-1] != q.shape[-1]:
        rotated: tuple[Tensor, Tensor] = function(q, k, cos, sin, *args, **options)
        return rotated
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _rotate_halves(q, cos, sin), _rotate_halves(k, cos, sin)


def _rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    result = x * cos
    result[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    result[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return result


def _rotates_alike(function: Forward) -> bool:
    q, k, cos, sin = _random((2, 4, 3, 8), (2, 2, 3, 8), (2, 3, 8), (2, 3, 8))
    with torch.inference_mode():
        try:
            pairs = zip(_rotate(function, q, k, cos, sin), function(q, k, cos, sin), strict=True)
            return all(torch.allclose(found, expected, atol=1e-5) for found, expected in pairs)
        except _UNSUPPORTED:
            return False


@torch.inference_mode()
def _agrees(module: nn.Module, forward: Forward, features: int, weight: Tensor, scale: float = 1) -> bool:
    """Whether both compute the same of random numbers, but for rounding; NaN is not the same."""
    tolerance = _TOLERANCE.get(weight.dtype)
    if tolerance is None or weight.is_meta:
        return False
    [x] = _random((1, 5, features))
    x = (scale * x).to(weight.device, weight.dtype)
    was_training = module.training
    try:
        module.train(False)
        expected, found = module(x.clone()), forward(x.clone())
        error = (found.float() - expected.float()).abs().max()
        return found.shape == expected.shape and bool(error <= tolerance * expected.float().abs().max())
    except _UNSUPPORTED:
        return False
    finally:
        module.train(was_training)


def _random(*shapes: tuple[int, ...]) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(shape, generator=generator) for shape in shapes)
