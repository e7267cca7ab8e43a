"""The last layer, for the tokens whose hidden states are wanted.

Behind the attention of the last layer, a token's hidden state depends on no other token. Its
MLP, the projection of its attention and its queries are needed only where somebody reads the
hidden state; keys and values are needed everywhere. `leave_out_unwanted` finds by trial which
parts of the last layer may leave tokens out, whatever the architecture. `only_wanted` names
the tokens of the forward in progress.

In: a transformers causal LM. Out: the same model with hooks on those parts. Without
`only_wanted`, and while tokens are few, they change nothing; with it, hidden states of other
tokens are finite and mean nothing.

Shapes: N tokens of a forward, with the padding that is fed; W wanted ones, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# With a larger share of wanted tokens, moving them costs more than the others' work.
_WORTH = 0.8

Hook = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class WantedTokens:
    """`index` [W] into the `tokens` = N tokens of a forward, one row behind the other."""

    index: Tensor
    tokens: int

    def flat(self, x: object) -> Tensor | None:
        """`x` as [N, D]; None if it is something else than these tokens."""
        if not isinstance(x, Tensor) or x.dim() < 2:
            return None
        return x.flatten(0, -2) if x.shape[:-1].numel() == self.tokens else None


# A context variable, so that each thread that runs a model has its own.
_wanted: ContextVar[WantedTokens | None] = ContextVar(
    "wanted tokens", default=None
)


@contextmanager
def only_wanted(index: Tensor | None, tokens: int) -> Iterator[None]:
    """Within the block, forwards of this thread want these of their tokens; None: all."""
    wanted = None
    if index is not None and len(index) <= _WORTH * tokens:
        wanted = WantedTokens(index, tokens)
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


class _Part:
    """Hooks that let a module run wanted tokens only; its output is zero for the others."""

    def __init__(self) -> None:
        self._shape: torch.Size | None = None  # of the input that was cut

    def select(self, _: nn.Module, inputs: tuple[Any, ...]) -> Tensor | None:
        self._shape, wanted = None, _wanted.get()
        if wanted is None or len(inputs) != 1:
            return None
        x = wanted.flat(inputs[0])
        if x is None:
            return None
        self._shape = inputs[0].shape
        selected = x[wanted.index.to(x.device)]
        # As many dimensions as before: some modules ask for them.
        return selected[(None,) * (len(self._shape) - 2)]

    def spread(self, _: nn.Module, __: Any, output: Tensor) -> Tensor | None:
        wanted, shape = _wanted.get(), self._shape
        if wanted is None or shape is None:
            return None
        width = output.shape[-1]
        spread = output.new_zeros(wanted.tokens, width)
        index = wanted.index.to(output.device)
        spread[index] = output.reshape(-1, width)
        return spread.view(*shape[:-1], width)


def leave_out_unwanted(model: nn.Module, run: Callable[[], Any]) -> int:
    """Put hooks on the parts of the last layer that can leave tokens out; how many.

    `run` runs one sequence of a few tokens through `model`.
    """
    call = _call_of_last_layer(model, run)
    if call is None:
        return 0
    parts = 0
    for module in _token_wise(call):
        part = _Part()
        module.register_forward_pre_hook(part.select)
        module.register_forward_hook(part.spread)
        parts += 1
    return parts


@dataclass(frozen=True, slots=True)
class _Call:
    """The last layer, and what a forward gave it."""

    layer: nn.Module
    args: tuple[Any, ...]
    options: dict[str, Any]
    tokens: int

    @torch.inference_mode()
    def hidden_states(self) -> Tensor:  # [N, D]
        output = self.layer(*self.args, **self.options)
        hidden_states: Tensor = (
            output if isinstance(output, Tensor) else output[0]
        )
        return hidden_states.flatten(0, -2)


def _call_of_last_layer(model: Any, run: Callable[[], Any]) -> _Call | None:
    """The last layer is the last module of a list with as many as the model has layers."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    calls: list[_Call] = []

    def keep(
        layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        x = args[0] if args else options.get("hidden_states")
        if isinstance(x, Tensor):
            tokens = x.shape[:-1].numel()
            calls.append(_Call(layer, args, options, tokens))

    for modules in model.modules():
        if not isinstance(modules, nn.ModuleList):
            continue
        if not modules or len(modules) != count:
            continue
        hook = modules[-1].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            with torch.inference_mode():
                run()
        finally:
            hook.remove()
        if len(calls) == 1:  # a layer that is used again is no last one
            return calls[0]
        calls.clear()
    return None


def _token_wise(call: _Call) -> Iterator[nn.Module]:
    """The parts of the last layer whose work for one token concerns no other token."""
    for child in call.layer.children():
        if _concerns_no_other(child, call):
            yield child
            continue
        # The projections of an attention.
        for part in child.children():
            if _concerns_no_other(part, call):
                yield part


def _concerns_no_other(part: nn.Module, call: _Call) -> bool:
    """Whether wanted tokens stay finite when `part` takes and gives NaN for all others."""
    is_compiled = any(m._compiled_call_impl is not None for m in part.modules())
    has_matrices = any(weight.dim() > 1 for weight in part.parameters())
    if is_compiled or not has_matrices:
        return False
    # The last token, and one amid the others. The first is another's: many attend to it.
    index = torch.tensor([call.tokens // 2, call.tokens - 1])
    wanted = WantedTokens(index, call.tokens)
    spoilt = []

    def spoil(x: object) -> Tensor | None:
        flat = wanted.flat(x)
        if flat is None:
            return None
        result = torch.full_like(flat, torch.nan)
        result[index] = flat[index]
        spoilt.append(x)
        return result.view_as(x)  # type: ignore[arg-type]

    hooks = [
        part.register_forward_pre_hook(
            lambda _, inputs: spoil(*inputs) if len(inputs) == 1 else None
        ),
        part.register_forward_hook(lambda _, __, output: spoil(output)),
    ]
    try:
        finite = call.hidden_states()[index].isfinite().all()
    # What a module that was not made for this may raise.
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    finally:
        for hook in hooks:
            hook.remove()
    # Once before and once behind it.
    return len(spoilt) == 2 and bool(finite)
