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
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pipeline.engine import ragged_attention
from pipeline.engine.partial_attention import attend_partially, merge

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


class PromptKeys(Protocol):
    """The keys and values of a prompt, [1, H, P, E] for each layer."""

    def keys_and_values(self, layer: int) -> tuple[Tensor, Tensor]: ...


# A prompt, and how many tokens of the batch stand in rows behind it.
PromptTokens = tuple[PromptKeys, int]


@dataclass(frozen=True, slots=True)
class UnpaddedLayout:
    """Where each of M tokens stands in a batch [B, Q], row by row.

    `causal`: each row is a sequence from slot 0 on; attention is then causal, and the mask
    of the forward is ignored. With `cu_seqlens` as well, and nothing cached, its rows are
    never padded where ragged_attention.py takes them.
    """

    row: Tensor  # [M]
    slot: Tensor  # [M]
    rows: int  # B
    slots: int  # Q, the longest row
    causal: bool = False
    cu_seqlens: Tensor | None = (
        None  # [B + 1] int32: where each row begins, and M
    )
    # Prompts behind which rows stand, in the order of the rows: each with its number of tokens.
    prompts: tuple[PromptTokens, ...] = ()

    @classmethod
    def of(
        cls,
        is_token: ndarray,
        device: torch.device,
        causal: bool = False,
        ragged: bool = False,
        prompts: tuple[PromptTokens, ...] = (),
    ) -> UnpaddedLayout:
        """The layout of a batch whose real tokens are `is_token` [B, Q] bool."""
        row, slot = is_token.nonzero()
        cu_seqlens = None
        if ragged:
            ends = is_token.sum(axis=1).cumsum()
            cu_seqlens = to_device(np.append(0, ends).astype(np.int32), device)
        return cls(
            to_device(row, device),
            to_device(slot, device),
            *is_token.shape,
            causal,
            cu_seqlens,
            prompts,
        )

    def on(self, device: torch.device) -> UnpaddedLayout:
        """The same on another device, for a model that is spread over several."""
        if device == self.row.device:
            return self
        row, slot = self.row.to(device), self.slot.to(device)
        cu_seqlens = self.cu_seqlens
        if cu_seqlens is not None:
            cu_seqlens = cu_seqlens.to(device)
        return replace(self, row=row, slot=slot, cu_seqlens=cu_seqlens)

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
    if layout.prompts:
        return _attend_behind_prompts(
            module, layout, query, key, value, attention_mask, **options
        ), None
    if layout.cu_seqlens is not None and _is_ragged(
        module, query, key, value, options
    ):
        return ragged_attention.attend(
            query,
            key,
            value,
            layout.cu_seqlens,
            layout.slots,
            options.get("scaling"),
        ), None
    if layout.causal:
        key, value = layout.pad_heads(key), layout.pad_heads(value)
        # sdpa then takes its causal path, which needs no mask.
        attention_mask = None
    # Without `causal` the cache has already put keys and values into their rows.
    query = layout.pad_heads(query)
    output = _attend(module, query, key, value, attention_mask, **options)
    return layout.unpad(output), None


def _attend_behind_prompts(
    module: torch.nn.Module,
    layout: UnpaddedLayout,
    query: Tensor,  # [1, H, M, E]
    key: Tensor,  # [B, H / groups, T, E]
    value: Tensor,
    mask: Tensor | None,  # [B, 1, Q, T]
    scaling: float | None = None,
    **options: Any,
) -> Tensor:  # [1, M, H, E]
    """Attention to the prompts' keys, read once for all rows, and to those of the own row."""
    if options.keys() & _SCORE_OPTIONS:
        raise ValueError("attention with soft caps cannot be merged")
    own_query = layout.pad_heads(query)
    if layout.causal:
        # Slots are those of the batch: keys and values of a cache have spare ones.
        key, value = key[:, :, : layout.slots], value[:, :, : layout.slots]
        mask = None
    output, log_sum_exp = attend_partially(
        own_query, key, value, mask, causal=layout.causal, scale=scaling
    )
    layer: int = module.layer_idx  # type: ignore[assignment]
    parts = []
    start = 0
    for prompt, tokens in layout.prompts:
        part = query[:, :, start : start + tokens]
        parts.append(
            attend_partially(
                part, *prompt.keys_and_values(layer), scale=scaling
            )
        )
        start += tokens
    return merge(
        layout.unpad(output.transpose(1, 2)),
        layout.unpad(log_sum_exp.transpose(1, 2)),
        torch.cat([part.transpose(1, 2) for part, _ in parts], dim=1),
        torch.cat([part.transpose(1, 2) for _, part in parts], dim=1),
    )


def _is_ragged(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: dict[str, Any],
) -> bool:
    """Whether ragged attention computes what sdpa would, with these options."""
    is_causal = options.get("is_causal")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    return (
        is_causal
        and not options.keys() & _SCORE_OPTIONS
        and ragged_attention.fits(query, key, value)
    )


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
