"""A KV cache with buffers that are written in place.

In: keys and values that a transformers model hands to its cache. Out: views of all slots so
far. A stock DynamicCache copies the whole cache at every step, which for a decode step of a
few tokens costs more than the step. Of a DynamicCache's methods only `update` and
`get_seq_length` are supported.

Rows may stand behind a prompt whose keys and values they share: its slots are not among theirs.

Shapes: B rows, H key-value heads, Q new slots, M real tokens, T visible slots (filled ones,
rounded up to `slot_multiple`), E head size; B' rows and T' slots that are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from transformers import DynamicCache

from pipeline.engine.unpadding import (
    PromptTokens,
    current_layout,
    to_device,
)

SPARE_SHARE = 4  # a full cache grows to what is needed, and a fourth more
# A cache, some of its rows [B'], and of each of those some slots [B', T'].
CacheRows = tuple["KVCache", ndarray, Tensor]


class KVCache(DynamicCache):
    """Keys and values of `length` slots. The caller adds Q to `length` after a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.capacity = 0
        # Views have a multiple of so many slots. The mask hides those not yet filled.
        self.slot_multiple = 1
        # Keys and values of each layer, [B, H, capacity, E].
        self.buffers: list[tuple[Tensor, Tensor]] = []
        # Prompts that rows share, in the order of the rows: each with its number of rows.
        self.prompts: list[tuple[KVCache, int]] = []

    def update(
        self,
        key_states: Tensor,  # [B, H, Q, E]; [1, H, M, E] unpadded
        value_states: Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[Tensor, Tensor]:
        """Write the next Q slots of a layer; returns its keys and values [B, H, T, E]."""
        layout = current_layout(key_states.device)
        slots = key_states.shape[2] if layout is None else layout.slots
        end = self.length + slots
        visible = self._visible(end)
        if layer_idx == len(
            self.buffers
        ):  # the first forward of an empty cache
            self.capacity = max(self.capacity, visible)
            keys, values = self._room(key_states), self._room(value_states)
            self.buffers.append((keys, values))
        if visible > self.capacity:
            self.reserve(visible + visible // SPARE_SHARE)
        keys, values = self.buffers[layer_idx]
        if layout is None:
            keys[:, :, self.length : end] = key_states
            values[:, :, self.length : end] = value_states
        else:
            # Unpadded states [1, H, M, E]: every token goes to its own row and slot.
            slot = self.length + layout.slot
            keys[layout.row, :, slot] = key_states[0].transpose(0, 1)
            values[layout.row, :, slot] = value_states[0].transpose(0, 1)
        # Views, not copies: the next forward writes behind them.
        return keys[:, :, :visible], values[:, :, :visible]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Filled slots, the same in every layer."""
        return self.length

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` slots (at least `length`), one layer at a time."""
        self.capacity = capacity
        for layer, (keys, values) in enumerate(self.buffers):
            # The old buffers of a layer are freed before the next layer grows.
            self.buffers[layer] = self._resized(keys), self._resized(values)

    def keys_and_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """The filled slots of a layer, [B, H, length, E] each."""
        keys, values = self.buffers[layer]
        return keys[:, :, : self.length], values[:, :, : self.length]

    def shared(self, rows: int, capacity: int) -> KVCache:
        """An empty cache of so many rows, which stand behind this cache of one row."""
        behind = KVCache()
        behind.slot_multiple = self.slot_multiple
        behind.capacity = behind._visible(capacity)
        behind.prompts = [(self, rows)]
        return behind

    @property
    def prompt_lengths(self) -> ndarray:
        """Slots of the prompt that each row [B] shares; empty if rows share none."""
        lengths = np.array(
            [prompt.length for prompt, _ in self.prompts], dtype=int
        )
        rows = [rows for _, rows in self.prompts]
        return np.repeat(lengths, np.array(rows, dtype=int))

    def tokens(self, tokens_by_row: Sequence[int]) -> tuple[PromptTokens, ...]:
        """The prompts, each with the tokens of its rows; `tokens_by_row` [B]."""
        counts = np.cumsum([0, *tokens_by_row])
        ends = np.cumsum([rows for _, rows in self.prompts], dtype=int)
        return tuple(
            (prompt, int(tokens))
            for (prompt, _), tokens in zip(
                self.prompts, np.diff(counts[ends], prepend=0), strict=True
            )
            if tokens  # rows of branches that have ended
        )

    def repeated(self, rows: int, capacity: int) -> KVCache:
        """This cache of one row repeated `rows` times, with room for `capacity` slots."""
        copy = KVCache()
        copy.length = self.length
        copy.slot_multiple = self.slot_multiple
        copy.capacity = self._visible(capacity)
        for keys, values in self.buffers:
            # expand() is a view; _resized makes the only copy.
            wide_keys = keys.expand(rows, -1, -1, -1)
            wide_values = values.expand(rows, -1, -1, -1)
            pair = copy._resized(wide_keys), copy._resized(wide_values)
            copy.buffers.append(pair)
        return copy

    @classmethod
    def gathered(cls, parts: Sequence[CacheRows], capacity: int) -> KVCache:
        """Move the chosen rows and slots of several caches into one, in the order given.

        Rows with fewer slots are filled up with finite numbers. The caches are emptied
        layer by layer, so that no more than one layer is held twice.
        """
        first, *_ = parts
        gathered = cls()
        gathered.length = max(slots.shape[1] for _, _, slots in parts)
        gathered.slot_multiple = first[0].slot_multiple
        gathered.capacity = gathered._visible(capacity)
        gathered.prompts = [
            prompt
            for cache, rows, _ in parts
            for prompt in cache._prompts_of(rows)
        ]
        for layer in range(len(first[0].buffers)):
            pairs = [cache.buffers[layer] for cache, _, _ in parts]
            keys = gathered._stack([pair[0] for pair in pairs], parts)
            values = gathered._stack([pair[1] for pair in pairs], parts)
            gathered.buffers.append((keys, values))
            # Free the layer of the old caches before the next one is copied.
            empty = keys.new_empty(0)
            for cache, _, _ in parts:
                cache.buffers[layer] = (empty, empty)
        return gathered

    def _prompts_of(self, rows: ndarray) -> list[tuple[KVCache, int]]:
        """The prompts of some rows [B'], ascending."""
        ends = np.cumsum([count for _, count in self.prompts], dtype=int)
        counts = np.diff(np.searchsorted(rows, ends), prepend=0).tolist()
        return [
            (prompt, count)
            for (prompt, _), count in zip(self.prompts, counts, strict=True)
            if count
        ]

    def _stack(
        self,
        buffers: Sequence[Tensor],
        parts: Sequence[CacheRows],
    ) -> Tensor:
        """One buffer [B, H, capacity, E] of the chosen rows and slots of others."""
        _, heads, _, size = buffers[0].shape
        total = sum(len(rows) for _, rows, _ in parts)
        shape = (total, heads, self.capacity, size)
        stacked = buffers[0].new_empty(shape)
        start = 0
        for buffer, (_, rows, slots) in zip(buffers, parts, strict=True):
            device = buffer.device
            end = start + len(rows)
            spare = self.capacity - slots.shape[1]
            # Spare slots repeat a chosen one: finite, as in _room, and in the same copy.
            filled = torch.cat([slots, slots[:, :1].expand(-1, spare)], dim=1)
            row = to_device(rows, device)
            _take(buffer, row, filled.to(device), stacked[start:end])
            start = end
        return stacked

    def _visible(self, end: int) -> int:
        """`end`, rounded up to the multiple that views have."""
        return -(-end // self.slot_multiple) * self.slot_multiple

    def _room(self, states: Tensor) -> Tensor:
        """A buffer of zeros for a layer: masked keys must be finite, too."""
        rows, heads, _, size = states.shape
        layout = current_layout(states.device)
        # Unpadded states come as one row.
        if layout is not None:
            rows = layout.rows
        return states.new_zeros(rows, heads, self.capacity, size)

    def _resized(self, buffer: Tensor) -> Tensor:
        """The filled slots of `buffer` in a new one with this cache's capacity."""
        rows, heads, _, size = buffer.shape
        resized = buffer.new_empty(rows, heads, self.capacity, size)
        filled = self.length
        resized[:, :, :filled] = buffer[:, :, :filled]
        resized[:, :, filled:] = 0  # finite, as in _room
        return resized


def _take(buffer: Tensor, rows: Tensor, slots: Tensor, out: Tensor) -> None:
    """Copy [B, H, T, E] at rows [B'], and of each of those at slots [B', T'], into `out`."""
    _, heads, width, size = buffer.shape
    # One gather over the buffer flattened to [B * H * T, E] is faster than three.
    head = torch.arange(heads, device=buffer.device)
    head_of_row = rows[:, None] * heads + head  # [B', H]
    index = head_of_row[:, :, None] * width + slots[:, None]  # [B', H, T']
    flat = buffer.reshape(-1, size)
    torch.index_select(flat, 0, index.flatten(), out=out.view(-1, size))
