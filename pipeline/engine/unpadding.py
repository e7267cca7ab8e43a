"""Unpadding: linear layers run real tokens only, attention still sees a padded batch.

The M real tokens of a batch [B, Q] are fed as one row [1, M]. Each attention layer puts
them back into their places, attends there, and takes them out again. Rows of a tree have
very unequal numbers of tokens; padding them would about double the work of a step.

`unpadded_forward` announces the layout of the forward in progress. Attention and the KV
cache read it with `current_layout`; nothing is passed through the model. The attention is
registered with transformers as `ATTENTION`, for every architecture that looks its
attention up by name. Without a layout it is plain scaled dot product attention.

Shapes: B rows, Q query slots, M real tokens, H heads, T cache slots, E head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "unpadded_sdpa"

# Attention with these options, which change its scores, is left to transformers.
_SCORE_OPTIONS = frozenset({"softcap", "position_bias"})


def to_device(array: ndarray, device: torch.device) -> Tensor:
    """`array` as a tensor on `device`. On a CPU both share their memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return tensor
    # A copy from pageable memory waits for all work queued on the GPU; one from
    # pinned memory does not.
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class UnpaddedLayout:
    """Where each of M tokens stands in a batch [B, Q], row by row.

    `causal`: each row is a whole sequence from slot 0 on and nothing is cached; attention
    is then causal, and the mask of the forward is ignored.
    """

    row: Tensor  # [M]
    slot: Tensor  # [M]
    rows: int  # B
    slots: int  # Q
    causal: bool = False

    @classmethod
    def of(
        cls,
        is_token: ndarray,
        device: torch.device,
        causal: bool = False,
    ) -> UnpaddedLayout:
        """The layout of a batch whose real tokens are `is_token` [B, Q] bool."""
        row, slot = is_token.nonzero()
        rows, slots = is_token.shape
        return cls(
            to_device(row, device), to_device(slot, device), rows, slots, causal
        )

    def on(self, device: torch.device) -> UnpaddedLayout:
        """The same on another device, for a model that is spread over several."""
        if self.row.device == device:
            return self
        row, slot = self.row.to(device), self.slot.to(device)
        return replace(self, row=row, slot=slot)

    def unpad(self, batch: Tensor) -> Tensor:
        """[B, Q, …] → [1, M, …]."""
        return batch[self.row, self.slot][None]

    def pad(self, tokens: Tensor) -> Tensor:
        """[1, M, …] → [B, Q, …]. Padding is zero: a masked key must still be finite."""
        batch = tokens.new_zeros(self.rows, self.slots, *tokens.shape[2:])
        batch[self.row, self.slot] = tokens[0]
        return batch

    def unpad_heads(self, batch: Tensor) -> Tensor:
        """[B, H, Q, E] → [1, H, M, E]."""
        tokens = self.unpad(batch.transpose(1, 2))
        return tokens.transpose(1, 2)

    def pad_heads(self, tokens: Tensor) -> Tensor:
        """[1, H, M, E] → [B, H, Q, E]."""
        batch = self.pad(tokens.transpose(1, 2))
        return batch.transpose(1, 2)


# A context variable, so that each thread that runs a model has its own.
_layout: ContextVar[UnpaddedLayout | None] = ContextVar(
    "unpadded layout", default=None
)


@contextmanager
def unpadded_forward(layout: UnpaddedLayout | None) -> Iterator[None]:
    """Within the block, forwards of this thread feed the tokens of `layout`."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


def current_layout(device: torch.device) -> UnpaddedLayout | None:
    """The layout of the forward in progress, on `device`; None if none is set."""
    layout = _layout.get()
    return layout and layout.on(device)


def unpadded_attention(
    module: torch.nn.Module,
    query: Tensor,  # [1, H, M, E] with a layout, else [B, H, Q, E]
    key: Tensor,  # [B, H / groups, T, E]; [1, H / groups, M, E] with a causal layout
    value: Tensor,
    attention_mask: Tensor | None,  # [B, 1, Q, T]
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention output [1, M, H, E] with a layout, else [B, Q, H, E]."""
    layout = current_layout(query.device)
    if layout is None:
        return _attend(
            module, query, key, value, attention_mask, **options
        ), None
    if layout.causal:
        key, value = layout.pad_heads(key), layout.pad_heads(value)
        # sdpa then takes its causal path, which needs no mask.
        attention_mask = None
    # Without `causal` the cache has already put keys and values into their rows.
    query = layout.pad_heads(query)
    output = _attend(module, query, key, value, attention_mask, **options)
    return layout.unpad(output), None


def _attend(
    module: torch.nn.Module,
    query: Tensor,  # [B, H, Q, E]
    key: Tensor,  # [B, H / groups, T, E]
    value: Tensor,
    mask: Tensor | None,  # [B, 1, Q, T]
    **options: Any,
) -> Tensor:  # [B, Q, H, E]
    """Scaled dot product attention, without copies of keys that heads share (GQA)."""
    groups: int = getattr(module, "num_key_value_groups", 1)
    shares_keys = groups > 1 and mask is not None and mask.shape[1] == 1
    if not shares_keys or options.keys() & _SCORE_OPTIONS:
        output, _ = sdpa_attention_forward(
            module, query, key, value, mask, **options
        )
        return output
    assert mask is not None
    # With a mask, transformers repeats keys and values for every head of a group. Here
    # the queries of a group are concatenated along the query axis, and share the keys.
    rows, heads, slots, size = query.shape
    grouped = query.reshape(rows, heads // groups, groups * slots, size)
    output = F.scaled_dot_product_attention(
        grouped,
        key,
        value,
        attn_mask=mask.repeat(1, 1, groups, 1),
        scale=options.get("scaling"),
    )
    return output.reshape(rows, heads, slots, -1).transpose(1, 2)


AttentionInterface.register(ATTENTION, unpadded_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
