"""What stands between a model's attentions, compiled: norms and MLPs in few kernels instead of many.

In: a transformers causal LM. Out: the same model; whatever of its layers is not attention runs through
torch.compile, compiled once for any number of tokens. Attention keeps to the engine's cache and masks, whose
shapes change with every step. Where nothing can be compiled, the model runs as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_VARIANTS = 64  # all parts share a limit, and sizes of one are compiled apart: the usual 8 would not do

Backend = str | Callable[..., Any]
"""torch.compile's."""


def compile_parts(model: PreTrainedModel, backend: Backend = "inductor") -> bool:
    """Compiles the parts, by running a few tokens; False, with a warning, where that fails."""
    parts = _parts(model)
    for part in parts:
        part.compile(dynamic=True, backend=backend, recompile_limit=_VARIANTS)
    ids = torch.arange(4, device=model.device)[None]
    try:
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)
    except Exception as error:  # torch's, Triton's and the C++ compiler's have no class in common
        for part in parts:
            part._compiled_call_impl = None
        why = " ".join(str(error).split("\n")[:2])  # what torch was at, and what stopped it
        logger.warning("model.compile: nothing was compiled, the model runs as it is: %s", why)
        return False
    return bool(parts)


def _parts(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Norms and MLPs of all layers, whatever they are called."""
    kinds = set(model._no_split_modules or ())
    layers = (layer for layer in model.modules() if type(layer).__name__ in kinds)
    inner = (part for layer in layers for part in layer.children())
    return [
        part
        for part in inner
        if not isinstance(part, torch.nn.Dropout) and "attention" not in type(part).__name__.lower()
    ]
