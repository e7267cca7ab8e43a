"""Chosen rows and slots of caches against plain indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.engine.kv_cache import KVCache

pytestmark = pytest.mark.unit

HEADS = (2, 3, 2)  # of each layer


def cache(rows: int, slots: int, seed: int) -> KVCache:
    generator = torch.Generator().manual_seed(seed)
    made = KVCache()
    made.length, made.capacity = slots, slots + 2

    def buffer(heads: int) -> Tensor:
        return torch.randn(rows, heads, made.capacity, 5, generator=generator)

    made.buffers = [(buffer(heads), buffer(heads)) for heads in HEADS]
    return made


def test_gathered_rows_and_slots_are_those_that_were_chosen() -> None:
    """Layers with unequally many heads, caches of unequal sizes."""
    first, second = cache(3, 6, 1), cache(2, 4, 2)
    parts = [
        (first, np.array([0, 2]), torch.tensor([[0, 1, 5], [2, 3, 4]])),
        (second, np.array([1]), torch.tensor([[3, 0]])),
    ]
    before = [part[0].buffers.copy() for part in parts]
    gathered = KVCache.gathered(parts, 7)
    assert (gathered.length, gathered.capacity) == (3, 7)
    for layer, pair in enumerate(gathered.buffers):
        for kind, buffer in enumerate(pair):
            assert buffer.shape == (3, HEADS[layer], 7, 5)
            assert buffer.isfinite().all()
            row = 0
            for (_, rows, slots), buffers in zip(parts, before, strict=True):
                for old_row, old_slots in zip(rows.tolist(), slots, strict=True):
                    chosen = buffers[layer][kind][old_row][:, old_slots]
                    assert torch.equal(buffer[row, :, : len(old_slots)], chosen)
                    row += 1
    # The old caches hold nothing any more.
    assert not any(len(buffer) for part in parts for pair in part[0].buffers for buffer in pair)
