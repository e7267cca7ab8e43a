"""SIGKILL at random moments to evaluate; `python -m bench.faults --kinds evaluate` has more rounds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench.faults.evaluating import EvaluateFaults
from bench.faults.world import World

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def test_three_kills_leave_the_bytes_of_an_undisturbed_run(tmp_path: Path) -> None:
    with World(tmp_path, 9) as world:
        found = EvaluateFaults(world).round("evaluate", random.Random("test"))
    assert found.passed, found
    assert "too late" not in found.moment
