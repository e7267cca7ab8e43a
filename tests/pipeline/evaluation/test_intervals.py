"""Wilson's interval, against published values and its definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.intervals import wilson

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [  # Newcombe (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_values(right: int, n: int, low: float, high: float) -> None:
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000), st.data())
def test_the_bounds_solve_the_equation_of_the_score(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    low, high = wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1
    for bound in (low, high):
        variance = bound * (1 - bound) / n
        assert (right / n - bound) ** 2 == pytest.approx(1.959963984540054**2 * variance, abs=1e-12)
    assert wilson(n - right, n) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("right", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_no_share_has_no_interval(right: int, n: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        wilson(right, n)
