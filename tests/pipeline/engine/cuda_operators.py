"""Stand-ins for torch's attention operators that exist on CUDA only: plain arithmetic behind their checks.

They take the operators' arguments and refuse what these refuse, except that float32 is allowed: in it
results can be compared exactly.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor


class AuxRequest(NamedTuple):
    """As in torch.nn.attention.varlen."""

    lse: bool = False


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """torch.nn.attention.varlen.varlen_attn of torch 2.13."""
    _, heads, size = query.shape
    kv_heads = key.shape[1]
    for states in (query, key, value):
        assert states.dtype == query.dtype
        assert states.shape[2] == size <= 256
        assert size % 8 == 0
        assert states.stride(-1) == 1
    assert enable_gqa or heads == kv_heads
    assert heads % kv_heads == 0
    assert value.shape == key.shape
    for cu_seq, tokens, longest in ((cu_seq_q, query, max_q), (cu_seq_k, key, max_k)):
        assert cu_seq.dtype == torch.int32
        assert cu_seq.is_contiguous()
        assert cu_seq[0] == 0
        assert cu_seq[-1] == len(tokens)
        assert type(longest) is int
        assert longest == cu_seq.diff().max()
    assert window_size in ((-1, -1), (-1, 0))
    parts, lse = [], []
    bounds = zip(pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True)
    for (q_start, q_end), (k_start, k_end) in bounds:
        hidden = torch.zeros(q_end - q_start, k_end - k_start)
        if window_size == (-1, 0):  # aligned at the last query and the last key
            later = torch.ones_like(hidden, dtype=torch.bool).triu(1 + hidden.shape[1] - hidden.shape[0])
            hidden.masked_fill_(later, -torch.inf)
        own = (query[q_start:q_end], key[k_start:k_end], value[k_start:k_end])
        output, log_sum = attention(*(states.transpose(0, 1)[None] for states in own), hidden, scale)
        parts.append(output[0].transpose(0, 1))
        lse.append(log_sum[0])
    output = torch.cat(parts)
    if return_aux is not None and return_aux.lse:
        return output, torch.cat(lse, dim=1).float()
    return output


def attention(
    query: Tensor,  # [B, H, Q, E]
    key: Tensor,  # [B, H / groups, T, E]
    value: Tensor,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention [B, H, Q, E] and log-sum-exp [B, H, Q], in float64."""
    groups = query.shape[1] // key.shape[1]
    keys, values = (states.double().repeat_interleave(groups, dim=1) for states in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query.double() @ keys.transpose(2, 3) * scale
    if bias is not None:
        scores = scores + bias
    return (scores.softmax(-1) @ values).to(query.dtype), scores.logsumexp(-1)


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    """aten::_scaled_dot_product_flash_attention."""
    assert dropout_p == 0.0
    assert not return_debug_mask
    _check_heads(query, key, value)
    assert query.shape[-1] <= 256
    bias = _causal(query, key) if is_causal else None
    output, lse = attention(query, key, value, bias, scale)
    return output, lse.float(), *[torch.empty(0)] * 7


def efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    """aten::_scaled_dot_product_efficient_attention."""
    assert dropout_p == 0.0
    assert compute_log_sumexp
    _check_heads(query, key, value)
    assert query.shape[1] == key.shape[1]
    bias = _causal(query, key) if is_causal else torch.zeros(())
    if attn_bias is not None:
        assert attn_bias.dtype == query.dtype
        assert attn_bias.shape == (*query.shape[:3], key.shape[2])
        assert attn_bias.stride(-1) == 1
        assert not any(stride % 8 for stride in attn_bias.stride()[:3])
        bias = bias + attn_bias
    output, lse = attention(query, key, value, bias, scale)
    padding = -query.shape[2] % 32
    padded = torch.nn.functional.pad(lse.float(), (0, padding), value=torch.inf)
    return output, padded, torch.empty(0), torch.empty(0)


def _causal(query: Tensor, key: Tensor) -> Tensor:
    """Query i sees keys 0 to i."""
    scores = torch.zeros(query.shape[2], key.shape[2])
    return scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)


def _check_heads(query: Tensor, key: Tensor, value: Tensor) -> None:
    for states in (query, key, value):
        assert states.ndim == 4
        assert states.dtype == query.dtype
        assert states.shape[0] == query.shape[0]
        assert states.shape[-1] % 8 == 0
        assert states.stride(-1) == 1
        assert states.storage_offset() % 8 == 0
    assert query.shape[1] % key.shape[1] == 0
    assert key.shape == value.shape
