"""A KV cache whose rows have lengths of their own, so that rows join and leave a batch.

In: keys and values of a contiguous range of rows, which `run` names before a forward. Each
row's are written behind its own tokens. Out: views of the range's slots. A row leaves as a
`SavedRow`, a copy, and joins again with it. Rolling back only shortens a row: what stands
behind its length is masked, and overwritten later.

Shapes: R rows, B of them in a forward, H key-value heads, Q new slots, M real tokens, T
visible slots, E head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.engine.kv_cache import SPARE_SHARE, KVCache
from pipeline.engine.unpadding import UnpaddedLayout, current_layout


@dataclass(frozen=True, slots=True)
class SavedRow:
    """A row outside of a batch: keys and values [H, length, E] of each layer."""

    layers: tuple[tuple[Tensor, Tensor], ...] = ()
    length: int = 0

    def truncated(self, length: int) -> SavedRow:
        """Its first `length` tokens. Views: nothing is copied."""
        layers = tuple(
            (keys[:, :length], values[:, :length])
            for keys, values in self.layers
        )
        return SavedRow(layers, length)


class RowCache(KVCache):
    """Keys and values of rows; row r has `lengths[r]` tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []
        self._row_capacity = 0
        # The next forward: its first row, the slots of its new tokens [B, Q], and the width
        # of the cache after it. Then row and slot of each token, the same in every layer.
        self._first = 0
        self._slots = torch.zeros(0, 0, dtype=torch.long)
        self._width = 0
        self._places = (self._slots, self._slots)

    def run(self, first: int, slots: Tensor, width: int) -> None:
        """Prepare a forward of rows `first` to the last.

        Their new tokens stand in `slots` [B, Q], and the last of these before `width`.
        """
        self._first = first
        self._slots = slots
        self._width = width
        self.length = width - slots.shape[1]

    def update(
        self,
        key_states: Tensor,  # [B, H, Q, E]; [1, H, M, E] unpadded
        value_states: Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[Tensor, Tensor]:
        """Write the new slots of a layer; returns the rows' keys and values [B, H, T, E]."""
        layout = current_layout(key_states.device)
        visible = self._visible(self._width)
        self._make_room((key_states, value_states), layer_idx, visible)
        keys, values = self.buffers[layer_idx]
        if layer_idx == 0:
            self._places = self._find_places(layout)
        row, slot = (place.to(key_states.device) for place in self._places)
        if layout is None:  # [B, Q, H, E]
            keys[row, :, slot] = key_states.transpose(1, 2)
            values[row, :, slot] = value_states.transpose(1, 2)
        else:  # [M, H, E]
            keys[row, :, slot] = key_states[0].transpose(0, 1)
            values[row, :, slot] = value_states[0].transpose(0, 1)
        rows = slice(self._first, self._first + len(self._slots))
        return keys[rows, :, :visible], values[rows, :, :visible]

    def _find_places(
        self, layout: UnpaddedLayout | None
    ) -> tuple[Tensor, Tensor]:
        """Row and slot of each new token: [B, 1] and [B, Q]; [M] each unpadded."""
        slots = self._slots
        if layout is None:
            row = torch.arange(len(slots), device=slots.device)
            return self._first + row[:, None], slots
        return self._first + layout.row, slots[layout.row, layout.slot]

    @torch.inference_mode()
    def add(self, saved: SavedRow) -> None:
        """Add a row with the tokens that it had when it left."""
        row = len(self.lengths)
        self.lengths.append(saved.length)
        for layer, states in enumerate(saved.layers):
            keys, values = states
            self._make_room((keys[None], values[None]), layer, saved.length)
            for buffer, state in zip(self.buffers[layer], states, strict=True):
                buffer[row, :, : saved.length] = state

    @torch.inference_mode()
    def save(self, row: int) -> SavedRow:
        """A copy of a row."""
        length = self.lengths[row]
        layers = tuple(
            (keys[row, :, :length].clone(), values[row, :, :length].clone())
            for keys, values in self.buffers
        )
        return SavedRow(layers, length)

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        """Drop a row; the last row takes its place."""
        last = len(self.lengths) - 1
        length = self.lengths.pop()
        if row == last:
            return
        self.lengths[row] = length
        for keys, values in self.buffers:
            for buffer in (keys, values):
                buffer[row, :, :length] = buffer[last, :, :length]

    def _make_room(
        self, states: tuple[Tensor, Tensor], layer: int, visible: int
    ) -> None:
        """Let the buffers of a layer hold all rows, and `visible` slots.

        `states` are keys and values [*, H, *, E], whose sizes E may differ.
        """
        if layer == 0:
            rows, slots = len(self.lengths), max([visible, *self.lengths])
            # Both anew: the most rows and the longest row were not there at one time.
            if rows > self._row_capacity or slots > self.capacity:
                self._row_capacity = 2 * rows
                self.capacity = self._visible(slots + slots // SPARE_SHARE)
        if layer == len(self.buffers):
            keys, values = (self._empty(state) for state in states)
            self.buffers.append((keys, values))
        keys, values = self.buffers[layer]
        if keys.shape[::2] != (self._row_capacity, self.capacity):
            self.buffers[layer] = self._resized(keys), self._resized(values)

    def _empty(self, states: Tensor) -> Tensor:
        """A buffer for such states. Zeros: what a mask hides must be finite."""
        _, heads, _, size = states.shape
        return states.new_zeros(self._row_capacity, heads, self.capacity, size)

    def _resized(self, buffer: Tensor) -> Tensor:
        """What fits of `buffer` in one with the present room."""
        resized = self._empty(buffer)
        rows = min(len(buffer), len(resized))
        slots = min(buffer.shape[2], resized.shape[2])
        resized[:rows, :, :slots] = buffer[:rows, :, :slots]
        return resized
