"""What this worker holds of a weight that DeepSpeed has divided."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from pipeline.finetuning.step.engine_setup import held_by_this_worker

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("rank", "shard", "held"),
    [
        (0, [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
        (1, [4.0, 5.0, math.nan], [4.0, 5.0]),
        (2, [math.nan, math.inf, math.nan], []),
    ],
)
def test_what_fills_a_shard_is_no_weight(
    rank: int, shard: list[float], held: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five weights on three workers: DeepSpeed makes shards of three, and initializes none of the rest."""
    monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)
    parameter = SimpleNamespace(ds_tensor=torch.tensor(shard), ds_numel=5)
    assert held_by_this_worker(parameter).tolist() == held


def test_a_weight_that_is_not_divided_is_held_whole() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    assert held_by_this_worker(parameter) is parameter
