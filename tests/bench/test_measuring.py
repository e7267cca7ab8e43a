"""The rate of a matrix product is the fastest library's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from bench import measuring

pytestmark = pytest.mark.unit


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Iterator[float]:
    """Of two products of 32 x 32: 4 s, then 1 s."""
    for name, value in (("MATRIX_S", 0.0), ("CPU_SIZE", 32), ("MATRIX_RUNS", 1)):
        monkeypatch.setattr(measuring, name, value)
    return iter([0.0, 4.0, 0.0, 1.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("read", [measuring.matrix_rates, measuring.matrix_rate])
def test_every_library_is_measured_and_the_fastest_taken(
    monkeypatch: pytest.MonkeyPatch, times: Iterator[float], dtype: torch.dtype, read: Callable[..., object]
) -> None:
    for name, stand_in in (("onednn_takes", lambda _: True), ("packed_linear", lambda x, packed, bias: x)):
        monkeypatch.setattr(measuring, name, stand_in)
    rates = {"torch": 2 * 32**3 / 4, "oneDNN": 2 * 32**3 / 1}
    found = read(torch.device("cpu"), dtype, lambda: next(times))
    assert found == (rates if read is measuring.matrix_rates else rates["oneDNN"])


def test_a_library_without_the_data_type_is_left_out(
    monkeypatch: pytest.MonkeyPatch, times: Iterator[float]
) -> None:
    monkeypatch.setattr(measuring, "onednn_takes", lambda _: False)
    rates = measuring.matrix_rates(torch.device("cpu"), torch.bfloat16, lambda: next(times))
    assert rates == {"torch": 2 * 32**3 / 4}
