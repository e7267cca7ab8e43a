"""Attention for tokens fed without their padding: linear layers see real tokens only, attention sees rows.

In: queries of M tokens in one long row, and the place of each in a batch of B rows and Q columns. Out: what
scaled dot product attention gives them there, in the long row's order. Registered with transformers under
`NAME` for every architecture that looks its attention up by name; without places it is plain sdpa. Rows of
a tree have very unequal numbers of tokens, and padding them all would about double the work of a small
model's step.

Shapes: B rows, Q columns, M tokens that are no padding, H heads, T columns of the cache, E size of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pipeline.engine.transfer import sent

NAME = "packed_sdpa"
_CHANGES = frozenset({"softcap", "position_bias"})  # what transformers' function does, or refuses, besides


@dataclass(frozen=True, slots=True)
class UnpaddedLayout:
    """Where M packed tokens stand in a batch, row by row.

    `causal`: each row is a sequence of its own from its first column on, nothing is cached, and the mask that
    comes along means nothing.
    """

    row: torch.Tensor  # [M]
    column: torch.Tensor  # [M]
    rows: int
    columns: int
    causal: bool = False

    @classmethod
    def of(cls, real: np.ndarray, device: torch.device, causal: bool = False) -> UnpaddedLayout:
        """Of the tokens that are `real` [B, Q] bool."""
        row, column = (sent(index, device) for index in real.nonzero())
        return cls(row, column, real.shape[0], real.shape[1], causal)

    def to(self, device: torch.device | str | int, **_: object) -> UnpaddedLayout:
        """On another device, where a model is spread over several."""
        return replace(self, row=self.row.to(device), column=self.column.to(device))

    def pack(self, batch: torch.Tensor) -> torch.Tensor:
        """[B, Q, …] → [1, M, …]."""
        return batch[self.row, self.column][None]

    def spread(self, packed: torch.Tensor) -> torch.Tensor:
        """[1, M, …] → [B, Q, …], zeros between: a key that nothing looks at must still be a number."""
        batch = packed.new_zeros(self.rows, self.columns, *packed.shape[2:])
        batch[self.row, self.column] = packed[0]
        return batch


@dataclass
class Handed:
    """The places of the forward that is under way, for layers to which a model hands nothing on."""

    places: UnpaddedLayout | None = None

    @contextmanager
    def meanwhile(self, places: UnpaddedLayout | None) -> Iterator[None]:
        """Within, these are the places."""
        self.places = places
        try:
            yield
        finally:
            self.places = None


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, M, E] with places, else [B, H, Q, E]
    key: torch.Tensor,  # [B, H, T, E]; [1, H, M, E] with causal places
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # [B, 1, Q, T]
    places: UnpaddedLayout | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention output [1, M, H, E], or [B, Q, H, E] without places."""
    if places is None:
        return _attended(module, query, key, value, attention_mask, **options), None
    if places.causal:
        attention_mask = None  # sdpa then takes its causal path, which needs none
        key, value = (places.spread(part.transpose(1, 2)).transpose(1, 2) for part in (key, value))
    wide = places.spread(query.transpose(1, 2)).transpose(1, 2)
    return places.pack(_attended(module, wide, key, value, attention_mask, **options)), None


def _attended(
    module: torch.nn.Module,
    query: torch.Tensor,  # [B, H, Q, E]
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **options: Any,
) -> torch.Tensor:
    """[B, Q, H, E]. Where several heads share keys and values, and a mask keeps transformers from using that,
    their queries stand in one row behind each other, and no keys and values are copied."""
    groups: int = getattr(module, "num_key_value_groups", 1)
    rows, heads, columns, size = query.shape
    if groups == 1 or mask is None or mask.shape[1] != 1 or options.keys() & _CHANGES:
        found: torch.Tensor = sdpa_attention_forward(module, query, key, value, mask, **options)[0]
        return found
    together = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(rows, heads // groups, groups * columns, size),
        key,
        value,
        attn_mask=mask.repeat(1, 1, groups, 1),
        scale=options.get("scaling"),
    )
    return together.reshape(rows, heads, columns, -1).transpose(1, 2)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
