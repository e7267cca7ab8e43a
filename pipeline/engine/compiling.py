"""Norms and MLPs through torch.compile: few kernels instead of many.

In: a transformers causal LM. Out: the same model; everything in its layers but attention
is compiled once for any number of tokens. Attention stays as it is: its cache and masks
have another shape at every step. Where nothing can be compiled, the model runs as before.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# All parts share one limit, and sizes of one token compile apart: the default of 8 is
# not enough.
_RECOMPILE_LIMIT = 64

# A backend of torch.compile: its name, or a function.
Backend = str | Callable[..., Any]


def compile_layers(
    model: PreTrainedModel, backend: Backend = "inductor"
) -> bool:
    """Compile norms and MLPs by running a few tokens; False, with a warning, if it fails."""
    modules = _norms_and_mlps(model)
    limit = _recompile_limit()
    for module in modules:
        module.compile(dynamic=True, backend=backend, **limit)
    # Compilation happens at the first forward; errors show up here, not within a run.
    ids = torch.arange(4, device=model.device)[None]
    try:
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)
    except (
        Exception
    ) as error:  # errors of torch, Triton and the compiler share no class
        for module in modules:
            module._compiled_call_impl = None
        reason = " ".join(str(error).split("\n")[:2])
        logger.warning(
            "model.compile: nothing was compiled, the model runs as it is: %s",
            reason,
        )
        return False
    return bool(modules)


def _recompile_limit() -> dict[str, Any]:
    """The options of torch.compile that set the limit of recompilations."""
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return {"recompile_limit": _RECOMPILE_LIMIT}
    # torch 2.11 has one limit for the whole process.
    torch._dynamo.config.recompile_limit = _RECOMPILE_LIMIT
    return {}


def _norms_and_mlps(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The modules of all layers but attention and dropout, whatever they are called."""
    layer_types = set(model._no_split_modules or ())
    return [
        child
        for layer in model.modules()
        if type(layer).__name__ in layer_types
        for child in layer.children()
        if not isinstance(child, torch.nn.Dropout)
        and "attention" not in type(child).__name__.lower()
    ]
