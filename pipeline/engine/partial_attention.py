"""Attention to a part of the keys, with what it takes to merge it with another part.

The softmax over two sets of keys is a weighted mean of the softmaxes over each; the weights follow
from the log-sum-exps of the scores. So the keys of a prompt can be attended to once for all rows
that stand behind it, and those of each row by themselves.

Shapes: B rows, H heads, H' key-value heads, Q queries, T keys, E head size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.engine import cuda_attention

# Query, key, value, mask, causal, scale -> output and log-sum-exp. Without `causal` there are as
# many heads of each.
Operator = Callable[
    [Tensor, Tensor, Tensor, Tensor | None, bool, float | None],
    tuple[Tensor, Tensor],
]


def attend_partially(
    query: Tensor,  # [B, H, Q, E]
    key: Tensor,  # [B, H', T, E]
    value: Tensor,
    mask: Tensor | None = None,  # [B, 1, Q, T], added to scores
    *,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention output [B, H, Q, E], and the log-sum-exp [B, H, Q] of the scores in float32.

    With `causal`, query i sees keys 0 to i, and there is no mask.
    """
    rows, heads, slots, size = query.shape
    # The queries of heads that share keys stand behind one another and read them once. A
    # causal operator goes by their places, and finds the keys of each head by itself.
    groups = 1 if causal else heads // key.shape[1]
    grouped = query.reshape(rows, heads // groups, groups * slots, size)
    if mask is not None and groups > 1:
        mask = mask.repeat(1, 1, groups, 1)
    attend = _operator(query.device)
    output, log_sum_exp = attend(grouped, key, value, mask, causal, scale)
    return (
        output.reshape(rows, heads, slots, -1),
        log_sum_exp.reshape(rows, heads, slots),
    )


def _operator(device: torch.device) -> Operator:
    return cuda_attention.attend if device.type == "cuda" else _attend_on_cpu


def _attend_on_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, log_sum_exp = attend(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )
    return output, log_sum_exp


def merge(
    output: Tensor,  # [..., E], overwritten
    log_sum_exp: Tensor,  # [...]
    other: Tensor,  # [..., E]
    other_log_sum_exp: Tensor,  # [...]
) -> Tensor:
    """Attention to the keys of both parts."""
    # The other part's share of the softmax.
    share = torch.sigmoid(other_log_sum_exp - log_sum_exp)
    return output.lerp_(other, share[..., None].to(output.dtype))
