"""Keys and values of many rows in buffers that are written in place.

In: what a transformers model passes to its cache. Out: views of all columns so far. A stock DynamicCache
copies the whole cache at every step, which for a decode step of a few tokens costs more than the step.
Knows no tokens and no masks.

Shapes: B rows, H key-value heads, T columns, E size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from pipeline.engine.unpadding import UnpaddedLayout


class KVCache(DynamicCache):
    """A cache of `length` filled columns. Whoever runs the model adds what it fed to `length` afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.capacity = 0
        self.bucket = 1  # columns are shown in multiples of it; those behind the filled ones are to be masked
        # Keys and values of each layer, [B, H, capacity, E].
        self.buffers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.places: UnpaddedLayout | None = (
            None  # where the tokens of this forward belong, if they come packed
        )

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes keys and values [B, H, Q, E] behind the filled columns; returns all of them [B, H, T, E],
        T a multiple of `bucket`.

        Packed ones [1, H, M, E] go to their `places`.
        """
        end = self.length + (key_states.shape[2] if self.places is None else self.places.columns)
        if layer_idx == len(self.buffers):  # the first forward of an empty cache
            self.capacity = max(self.capacity, self._shown(end))
            self.buffers.append((_room(key_states, self.capacity), _room(value_states, self.capacity)))
        shown = self._shown(end)
        if shown > self.capacity:
            self.reserve(shown + shown // 4)
        keys, values = self.buffers[layer_idx]
        if self.places is None:
            keys[:, :, self.length : end] = key_states
            values[:, :, self.length : end] = value_states
        else:
            places = self.places.to(keys.device)
            row, column = places.row, places.column
            keys[row, :, self.length + column] = key_states[0].transpose(0, 1)
            values[row, :, self.length + column] = value_states[0].transpose(0, 1)
        return keys[:, :, :shown], values[:, :, :shown]

    def _shown(self, end: int) -> int:
        return -(-end // self.bucket) * self.bucket

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Filled columns, the same in every layer."""
        return self.length

    def reserve(self, capacity: int) -> None:
        """Room for `capacity` columns."""
        self.capacity = capacity
        # One by one, so that no more than one layer is held twice.
        for layer, (keys, values) in enumerate(self.buffers):
            self.buffers[layer] = _grown(keys, self.length, capacity), _grown(values, self.length, capacity)

    def repeated(self, rows: int, capacity: int) -> KVCache:
        """A copy of this cache of one row as `rows` rows, with room for `capacity` columns."""
        copy = KVCache()
        copy.length, copy.bucket = self.length, self.bucket
        copy.capacity = copy._shown(capacity)
        for keys, values in self.buffers:
            wide = (part.expand(rows, -1, -1, -1) for part in (keys, values))
            copy.buffers.append(tuple(_grown(part, self.length, copy.capacity) for part in wide))  # type: ignore[arg-type]
        return copy

    @classmethod
    def joined(cls, parts: Sequence[tuple[KVCache, torch.Tensor, torch.Tensor]], capacity: int) -> KVCache:
        """Of each cache `rows` [B'], and of each of those `columns` [B', T'] in that order, with room for
        `capacity`; the rows of all parts below each other, and zeros behind the shorter ones.

        The caches are emptied, layer by layer, so that no more than one layer is held twice.
        """
        joined = cls()
        joined.length, joined.bucket = max(columns.shape[1] for _, _, columns in parts), parts[0][0].bucket
        joined.capacity = joined._shown(capacity)
        rows = sum(len(kept) for _, kept, _ in parts)
        for layer, pair in enumerate(parts[0][0].buffers):
            new = tuple(part.new_empty(rows, part.shape[1], joined.capacity, part.shape[3]) for part in pair)
            done = 0
            for cache, kept, columns in parts:
                end, width = done + len(kept), columns.shape[1]
                for old, part in zip(cache.buffers[layer], new, strict=True):
                    part[done:end, :, :width] = _chosen(old, kept.to(old.device), columns.to(old.device))
                    part[done:end, :, width:] = 0  # a masked column must still be a number
                cache.buffers[layer] = (pair[0].new_empty(0), pair[1].new_empty(0))
                done = end
            joined.buffers.append((new[0], new[1]))
        return joined


def _chosen(part: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """[B, H, T, E] at rows [B'], and of each of those at columns [B', T']."""
    _, heads, width, size = part.shape
    head = rows[:, None] * heads + torch.arange(heads, device=part.device)  # [B', H], of all rows' heads
    index = head[:, :, None] * width + columns[:, None]
    return part.reshape(-1, size).index_select(0, index.flatten()).view(*index.shape, size)


def _room(like: torch.Tensor, capacity: int) -> torch.Tensor:
    """Zeros, not whatever was in memory: a masked column must still be a number."""
    return like.new_zeros(like.shape[0], like.shape[1], capacity, like.shape[3])


def _grown(part: torch.Tensor, length: int, capacity: int) -> torch.Tensor:
    grown = part.new_empty(part.shape[0], part.shape[1], capacity, part.shape[3])
    grown[:, :, :length] = part[:, :, :length]
    grown[:, :, length:] = 0  # not whatever was in memory: a masked column must still be a number
    return grown
