"""Attention over batches and packed rows is transformers' own, whatever heads share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from pipeline.engine import unpadding
from pipeline.engine.unpadding import UnpaddedLayout, unpadded_attention, unpadded_forward

pytestmark = pytest.mark.unit

ROWS, QUERIES, COLUMNS, SIZE = 2, 3, 7, 8


def heads(number: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(ROWS, number, columns, SIZE, generator=torch.Generator().manual_seed(seed))


def mask() -> torch.Tensor:
    """Another half of the columns is hidden from each query of each row; column 0 from none."""
    hidden = torch.rand(ROWS, 1, QUERIES, COLUMNS, generator=torch.Generator().manual_seed(4)) < 0.5
    hidden[..., 0] = False
    return torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("shared", [1, 2, 4])
@pytest.mark.parametrize("queries", [1, QUERIES])
def test_heads_that_share_keys_and_values_attend_as_transformers_has_them(shared: int, queries: int) -> None:
    module: Any = SimpleNamespace(num_key_value_groups=shared, is_causal=True)
    query, key, value = heads(4, queries, 1), heads(4 // shared, COLUMNS, 2), heads(4 // shared, COLUMNS, 3)
    given, options = mask()[:, :, :queries], {"scaling": 0.3, "dropout": 0.0}
    own, _ = sdpa_attention_forward(module, query, key, value, given, **options)
    found, _ = unpadded_attention(module, query, key, value, given, **options)
    torch.testing.assert_close(found, own)


def test_unpadded_queries_attend_as_in_their_rows_and_copy_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    is_token = torch.tensor([[True, True, False], [True, True, True]])
    module: Any = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    query, key, value = heads(4, QUERIES, 1), heads(2, COLUMNS, 2), heads(2, COLUMNS, 3)
    own, _ = sdpa_attention_forward(module, query, key, value, mask(), scaling=0.3)
    layout = UnpaddedLayout.of(is_token.numpy(), torch.device("cpu"))
    monkeypatch.setattr(unpadding, "sdpa_attention_forward", None)  # it would copy them
    with unpadded_forward(layout):
        output, _ = unpadded_attention(module, layout.unpad_heads(query), key, value, mask(), scaling=0.3)
    torch.testing.assert_close(output, own[is_token][None])
