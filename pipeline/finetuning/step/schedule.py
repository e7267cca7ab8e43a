"""The learning rate of every step (paper section 4.1: a linear warm-up over the first tenth of the steps).

In: the configuration. Out: shares of the peak rate. The rate depends on the number of the step only, so
a resumed run has the rates of an undisturbed one. This module knows no optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from pipeline.base.finetune_config import FinetuneConfig


def warmup_steps(config: FinetuneConfig) -> int:
    """Steps until the peak rate, at least 1. A run keeps this number when `max_steps` is raised."""
    return max(1, math.ceil(config.warmup_share * config.max_steps))


def rate_factor(config: FinetuneConfig, warmup: int | None = None) -> Callable[[int], float]:
    """Share of the peak learning rate by the number of steps taken before, in [0, 1].

    It rises linearly over the first `warmup` steps (None: `warmup_steps(config)`). Then it stays at 1,
    or falls to `min_rate_share`, which it reaches at the end of step `max_steps`.
    """
    rising = warmup_steps(config) if warmup is None else max(1, warmup)
    falling = max(1, config.max_steps - rising)
    least = config.min_rate_share

    def factor(steps: int) -> float:
        if steps < rising or config.schedule == "constant":
            return min(1.0, (steps + 1) / rising)
        done = min(1.0, (steps - rising) / falling)
        rest = 1.0 - done if config.schedule == "linear" else (1.0 + math.cos(math.pi * done)) / 2.0
        return least + (1.0 - least) * rest

    return factor
