"""Causal attention over sequences of unequal lengths, one behind the other (scoring on a GPU).

In: queries, keys and values of all tokens of a batch in one row, and where each sequence
begins. Out: the attention output of each token over its own sequence up to itself. torch's
variable-length flash attention reads neither padding nor a mask. It exists for CUDA, in half
precision; everywhere else unpadding.py pads the row for scaled dot product attention.

Shapes: B sequences, M tokens in all, H heads, E head size.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

_TYPES = (torch.bfloat16, torch.float16)
_LARGEST_HEAD, _HEAD_MULTIPLE = 256, 8
_FIRST_CAPABILITY = (8, 0)  # Ampere
_CAUSAL = (-1, 0)  # every earlier token, and no later one


def is_supported(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the operator runs on `device` with numbers of type `dtype`."""
    return (
        device.type == "cuda"
        and dtype in _TYPES
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= _FIRST_CAPABILITY
    )


def fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the operator takes heads of these sizes, [1, H, M, E] each."""
    size = query.shape[-1]
    return (
        key.shape[-1] == value.shape[-1] == size <= _LARGEST_HEAD
        and size % _HEAD_MULTIPLE == 0
    )


def attend(
    query: Tensor,  # [1, H, M, E]
    key: Tensor,  # [1, H / groups, M, E]
    value: Tensor,
    cu_seqlens: Tensor,  # [B + 1] int32: where each sequence begins, and M
    longest: int,
    scale: float | None,
) -> Tensor:  # [1, M, H, E]
    """Causal attention within each sequence; scores are multiplied by `scale` (E ** -0.5)."""
    shared: dict[str, Any] = {}
    # torch 2.11 lets heads share keys without being told, later versions must be told.
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        shared["enable_gqa"] = query.shape[1] != key.shape[1]
    tokens = [states[0].transpose(0, 1) for states in (query, key, value)]
    output: Tensor = varlen_attn(
        *tokens,
        cu_seqlens,
        cu_seqlens,
        longest,
        longest,
        scale=scale,
        window_size=_CAUSAL,
        **shared,
    )
    return output[None]
