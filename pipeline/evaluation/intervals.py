"""Intervals for shares of questions. In: counts. Out: bounds from 0 to 1. It draws nothing at random."""

from __future__ import annotations

import math

_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of Wilson's score for `successes` of `n` trials. Raises ValueError for n = 0."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"no share: {successes} of {n}")
    share, spread = successes / n, _Z**2 / n
    center = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    # The bounds of all and of none are exactly 1 and 0, which rounding must not miss.
    return (0.0 if successes == 0 else center - half), (1.0 if successes == n else center + half)
