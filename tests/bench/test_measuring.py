"""The rate of a matrix product is the fastest library's."""

from __future__ import annotations

import pytest
import torch

from bench import measuring

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_library_is_measured_and_the_fastest_taken(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(measuring, "MATRIX_S", 0.0)
    monkeypatch.setattr(measuring, "CPU_SIZE", 32)
    times = iter([0.0, 4.0, 0.0, 1.0])
    monkeypatch.setattr(measuring, "MATRIX_RUNS", 1)
    rates = measuring.matrix_rates(torch.device("cpu"), dtype, lambda: next(times))
    assert rates == {"torch": 2 * 32**3 / 4, "oneDNN": 2 * 32**3 / 1}
    times = iter([0.0, 4.0, 0.0, 1.0])
    assert measuring.matrix_rate(torch.device("cpu"), dtype, lambda: next(times)) == rates["oneDNN"]
