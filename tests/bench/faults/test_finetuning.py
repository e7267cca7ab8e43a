"""Two rounds of faults in fine-tuning: a node is killed, and a killed run goes on with other workers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from bench.faults.finetuning import FinetuneFaults, _kind, _rounded_to
from bench.faults.world import World


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_killed_node_and_other_workers_change_nothing(tmp_path: Path) -> None:
    with World(tmp_path, texts=30) as world:
        faults = FinetuneFaults(world)
        rounds = [faults.round(kind, random.Random(f"1 {kind}")) for kind in ("trainnode", "resharded")]
    assert all(each.passed for each in rounds), rounds


def keyed(*events: dict[str, Any]) -> list[tuple[tuple[str, Any], Any]]:
    return [((_kind(event), event["step"]), event) for event in events]


@pytest.mark.unit
def test_after_a_change_of_workers_only_losses_are_compared_and_not_to_the_last_digit() -> None:
    probe = {"step": 4, "prompts": 5, "calls": {}}
    evaluation = {"step": 4, "held_out_loss": 2.5, "plain_loss": 2.25}
    expected = keyed({"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, probe, evaluation)
    found = keyed(
        {"step": 1, "loss": 3.00009},
        {"step": 2, "loss": 2.0002},
        probe,
        evaluation | {"held_out_loss": 2.49995},
    )
    assert _rounded_to(found, expected) == [expected[0], found[1], expected[3]]
    unknown = keyed({"step": 3, "loss": 1.0})
    assert _rounded_to(unknown, expected) == unknown
