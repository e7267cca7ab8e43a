"""Two rounds of faults in fine-tuning: a node is killed, and a killed run goes on with other workers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench.faults.finetuning import FinetuneFaults
from bench.faults.world import World

pytestmark = pytest.mark.ray


@pytest.mark.timeout(900)
def test_a_killed_node_and_other_workers_change_nothing(tmp_path: Path) -> None:
    with World(tmp_path, texts=30) as world:
        faults = FinetuneFaults(world)
        rounds = [faults.round(kind, random.Random(f"1 {kind}")) for kind in ("trainnode", "resharded")]
    assert all(each.passed for each in rounds), rounds
