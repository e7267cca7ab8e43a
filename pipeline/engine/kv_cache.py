"""A KV cache with buffers that are written in place.

In: keys and values that a transformers model hands to its cache. Out: views of all slots
so far. A stock DynamicCache copies the whole cache at every step, which for a decode step
of a few tokens costs more than the step. The cache knows no tokens and no masks.

Shapes: B rows, H key-value heads, T slots, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from pipeline.engine.unpadding import current_layout

_GROWTH = 4  # a full cache grows by a fourth
CacheRows = tuple["KVCache", torch.Tensor, torch.Tensor]
"""A cache, some of its rows [B'], and of each of those some slots [B', T']."""


class KVCache(DynamicCache):
    """Keys and values of `length` slots. Whoever runs the model advances `length`."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.capacity = 0
        # Views have a multiple of so many slots; the mask hides those not yet filled.
        self.slot_multiple = 1
        # Keys and values of each layer, [B, H, capacity, E].
        self.buffers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def update(
        self,
        key_states: torch.Tensor,  # [B, H, Q, E]; [1, H, M, E] unpadded
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the next Q slots of a layer; all its keys and values [B, H, T, E]."""
        layout = current_layout(key_states.device)
        slots = key_states.shape[2] if layout is None else layout.slots
        end = self.length + slots
        visible = self._visible(end)
        if layer_idx == len(self.buffers):  # the first forward of an empty cache
            self.capacity = max(self.capacity, visible)
            self.buffers.append((self._room(key_states), self._room(value_states)))
        if visible > self.capacity:
            self.reserve(visible + visible // _GROWTH)
        keys, values = self.buffers[layer_idx]
        if layout is None:
            keys[:, :, self.length : end] = key_states
            values[:, :, self.length : end] = value_states
        else:
            slot = self.length + layout.slot
            keys[layout.row, :, slot] = key_states[0].transpose(0, 1)
            values[layout.row, :, slot] = value_states[0].transpose(0, 1)
        return keys[:, :, :visible], values[:, :, :visible]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Filled slots, the same in every layer."""
        return self.length

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` slots, one layer at a time to bound peak memory."""
        self.capacity = capacity
        for layer, (keys, values) in enumerate(self.buffers):
            self.buffers[layer] = self._resized(keys), self._resized(values)

    def repeated(self, rows: int, capacity: int) -> KVCache:
        """A copy of this cache of one row, `rows` times, with room for `capacity` slots."""
        copy = KVCache()
        copy.length = self.length
        copy.slot_multiple = self.slot_multiple
        copy.capacity = self._visible(capacity)
        for keys, values in self.buffers:
            wide_keys = keys.expand(rows, -1, -1, -1)
            wide_values = values.expand(rows, -1, -1, -1)
            copy.buffers.append((copy._resized(wide_keys), copy._resized(wide_values)))
        return copy

    @classmethod
    def gathered(cls, parts: Sequence[CacheRows], capacity: int) -> KVCache:
        """The chosen rows of several caches below one another, each with its slots.

        Shorter rows are followed by zeros. The caches are emptied layer by layer, so that
        no more than one layer is held twice.
        """
        first, *_ = parts
        gathered = cls()
        gathered.length = max(slots.shape[1] for _, _, slots in parts)
        gathered.slot_multiple = first[0].slot_multiple
        gathered.capacity = gathered._visible(capacity)
        for layer in range(len(first[0].buffers)):
            keys = [
                (cache.buffers[layer][0], rows, slots) for cache, rows, slots in parts
            ]
            values = [
                (cache.buffers[layer][1], rows, slots) for cache, rows, slots in parts
            ]
            gathered.buffers.append((gathered._stack(keys), gathered._stack(values)))
            for cache, _, _ in parts:
                empty = keys[0][0].new_empty(0)
                cache.buffers[layer] = (empty, empty)
        return gathered

    def _stack(
        self, parts: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor:
        """One buffer [B, H, capacity, E] of the chosen rows and slots of others."""
        _, heads, _, size = parts[0][0].shape
        total = sum(len(rows) for _, rows, _ in parts)
        stacked = parts[0][0].new_empty(total, heads, self.capacity, size)
        start = 0
        for buffer, rows, slots in parts:
            end, width = start + len(rows), slots.shape[1]
            chosen = _take(buffer, rows.to(buffer.device), slots.to(buffer.device))
            stacked[start:end, :, :width] = chosen
            stacked[start:end, :, width:] = 0  # a masked key must still be finite
            start = end
        return stacked

    def _visible(self, end: int) -> int:
        """`end`, rounded up to the multiple that views have."""
        return -(-end // self.slot_multiple) * self.slot_multiple

    def _room(self, states: torch.Tensor) -> torch.Tensor:
        """An empty buffer for a layer. Zeros: a masked key must still be finite."""
        rows = states.shape[0]
        layout = current_layout(states.device)
        if layout is not None:
            rows = layout.rows
        return states.new_zeros(rows, states.shape[1], self.capacity, states.shape[3])

    def _resized(self, buffer: torch.Tensor) -> torch.Tensor:
        """The filled slots of `buffer` in a new one with this cache's capacity."""
        rows, heads, _, size = buffer.shape
        resized = buffer.new_empty(rows, heads, self.capacity, size)
        resized[:, :, : self.length] = buffer[:, :, : self.length]
        resized[:, :, self.length :] = 0  # a masked key must still be finite
        return resized


def _take(
    buffer: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor
) -> torch.Tensor:
    """[B, H, T, E] at rows [B'], and of each of those at slots [B', T']: [B', H, T', E]."""
    _, heads, width, size = buffer.shape
    # One gather over the flattened buffer: indices of (row, head), then of their slots.
    head = rows[:, None] * heads + torch.arange(heads, device=buffer.device)  # [B', H]
    index = head[:, :, None] * width + slots[:, None]  # [B', H, T']
    flat = buffer.reshape(-1, size).index_select(0, index.flatten())
    return flat.view(*index.shape, size)
