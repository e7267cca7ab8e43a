"""Attention for tokens fed without their padding: linear layers see real tokens only, attention sees rows.

In: queries of M tokens in one long row, and the place of each in a batch of B rows and Q columns. Out: what
scaled dot product attention gives them there, in the long row's order. Registered with transformers under
`NAME` for every architecture that looks its attention up by name; without places it is plain sdpa. Rows of
a tree have very unequal numbers of tokens, and padding them all would about double the work of a small
model's step.

Shapes: B rows, Q columns, M tokens that are no padding, H heads, T columns of the cache, E size of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "packed_sdpa"
Places = tuple[torch.Tensor, torch.Tensor]  # rows [M] and columns [M]


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, M, E] with places, else [B, H, Q, E]
    key: torch.Tensor,  # [B, H, T, E]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # [B, 1, Q, T]
    places: Places | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention output [1, M, H, E], or [B, Q, H, E] without places."""
    if places is None or attention_mask is None:
        plain: torch.Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]
        return plain, None
    rows, _, columns, _ = attention_mask.shape
    wide = query.new_empty(rows, columns, query.shape[1], query.shape[3])
    wide[places] = query[0].transpose(0, 1)
    found = sdpa_attention_forward(module, wide.transpose(1, 2), key, value, attention_mask, **options)[0]
    return found[places][None], None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
