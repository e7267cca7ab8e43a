"""Faults at random moments on a cluster of two nodes: every text once, as if nothing had happened.

One round of the kinds that take a node or the whole cluster, and of a process that stands still, each with
its own seed. test_run.py and test_annotator_actor.py have other faults on the cluster of all tests.
`python -m bench.faults` runs any number of rounds of every kind.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from bench.faults.annotating import AnnotateFaults
from bench.faults.recorded import record_folder, repetitions
from bench.faults.world import World

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

TEXTS = 123


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnnotateFaults]:
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(AnnotateFaults, "stop_s", 3.0)
    with World(tmp_path_factory.mktemp("faults"), TEXTS) as world:
        yield AnnotateFaults(world)
    monkeypatch.undo()


@pytest.mark.parametrize("kind", ["stop", "node", "restart"])
def test_a_fault_leaves_the_rows_of_an_undisturbed_run(trial: AnnotateFaults, kind: str) -> None:
    found = trial.round(kind, random.Random(f"test {kind}"))
    assert found.passed, found
    assert found.starts == (2 if kind == "restart" else 1)


def test_what_was_computed_is_on_record(trial: AnnotateFaults) -> None:
    """Else nothing would ever have been done again."""
    output = trial.undisturbed / "out"
    done = [line for path in record_folder(output).iterdir() for line in path.read_text().splitlines()]
    # Texts that no tool is tried on get their rows where they are read.
    by_actors = sum(bool(row["work"]) for row in trial.rows.values())
    assert sum(len(line.split()) - 1 for line in done if line.startswith("done")) == by_actors > 100
    assert repetitions(output, "begun") == repetitions(output, "done") == 0
