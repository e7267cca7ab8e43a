"""Random numbers of draws: streams that a key fixes, whatever is drawn beside them.

In: a seed, and integers that name a draw. Out: uniform numbers for its tokens, the same in
every run, process and batch (SplitMix64). docs/method.md states the recipe.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray

# SplitMix64's constants.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)


def stream_keys(
    seed: int,
    text_id: int | ndarray,
    tool: int,
    position: int | ndarray,
    m: int,
) -> ndarray:
    """Keys [m] uint64 of the streams of the m draws at token `position` of a text.

    `tool` is the tool's place in the list of tools. Arrays [R, 1] int64 of texts and
    positions give keys [R, m].
    """
    key = np.zeros(m, dtype=np.uint64)
    for part in (seed, text_id, tool, position):
        # Negative numbers wrap around.
        word = (
            part.astype(np.uint64)
            if isinstance(part, ndarray)
            else np.uint64(part % 2**64)
        )
        key = _mix((key ^ word) + _GAMMA)
    draw = np.arange(m, dtype=np.uint64)
    return _mix((key ^ draw) + _GAMMA)


def uniforms(keys: ndarray, step: ndarray | int) -> ndarray:
    """The numbers u in [0, 1) that streams `keys` hold for their token `step`, from 0."""
    # The generator's state after so many steps is a multiple of gamma away.
    count = np.atleast_1d(step) + 1
    bits = _mix(keys + count.astype(np.uint64) * _GAMMA)
    # A double holds 53 bits: the upper ones are taken.
    upper = bits >> np.uint64(11)
    return upper.astype(np.float64) * 2.0**-53


def _mix(bits: ndarray) -> ndarray:
    """SplitMix64's finaliser."""
    bits = bits ^ (bits >> np.uint64(30))
    bits = bits * _FIRST_FACTOR
    bits = bits ^ (bits >> np.uint64(27))
    bits = bits * _SECOND_FACTOR
    mixed: ndarray = bits ^ (bits >> np.uint64(31))
    return mixed
