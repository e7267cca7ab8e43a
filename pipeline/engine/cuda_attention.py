"""Attention with the log-sum-exp of its scores, on CUDA.

In and out: as attend_partially in partial_attention.py, which calls this for tensors on a GPU and
puts heads together that share keys.
Without a mask, in half precision, flash attention returns the log-sum-exp; with a mask, or in
float32, memory-efficient attention does. Both are the operators behind scaled dot product
attention, called by name because that returns no log-sum-exp. Their requirements of heads,
types and alignment are met here: scaled dot product attention would have met them.

Shapes: B rows, H heads, H' key-value heads, Q queries, T keys, E head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.engine.ragged_attention import fits, is_supported

_flash = torch.ops.aten._scaled_dot_product_flash_attention
_efficient = torch.ops.aten._scaled_dot_product_efficient_attention
# Rows of a mask must begin at multiples of so many numbers.
_MASK_MULTIPLE = 8


def attend(
    query: Tensor,  # [B, H, Q, E]
    key: Tensor,  # [B, H', T, E]; H' = H unless `causal`
    value: Tensor,
    mask: Tensor | None,  # [B, 1, Q, T], added to scores
    causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Attention output [B, H, Q, E], and the log-sum-exp [B, H, Q] of the scores in float32."""
    is_flash = is_supported(query.device, query.dtype)
    if mask is None and is_flash and fits(query, key, value):
        output, log_sum_exp, *_ = _flash(
            query, key, value, 0.0, causal, False, scale=scale
        )
        return output, log_sum_exp
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    bias = None if mask is None else _bias(mask, key)
    output, log_sum_exp, *_ = _efficient(
        query, key, value, bias, True, 0.0, causal, scale=scale
    )
    # The kernel rounds the number of queries up to a multiple of 32 in it.
    return output, log_sum_exp[..., : query.shape[2]]


def _bias(mask: Tensor, key: Tensor) -> Tensor:
    """The mask [B, 1, Q, T] for every head, [B, H', Q, T], aligned as the kernel reads it."""
    width = mask.shape[-1]
    if width % _MASK_MULTIPLE:
        mask = F.pad(mask, (0, -width % _MASK_MULTIPLE))[..., :width]
    return mask.expand(-1, key.shape[1], -1, -1)
