"""Faults at random moments on a cluster of two nodes: every text once, as if nothing had happened.

One round of a kind, each with its own seed; `python -m bench.faults` does as many as wanted, and the kinds
that take long.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from bench.faults import FaultTest, can_mount, record_folder, repetitions

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

TEXTS = 123


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultTest]:
    with FaultTest(tmp_path_factory.mktemp("faults"), TEXTS) as ready:
        yield ready


@pytest.mark.parametrize("kind", ["actor", "node", "restart", "half", "twice", "disk"])
def test_a_fault_leaves_the_rows_of_an_undisturbed_run(trial: FaultTest, kind: str) -> None:
    if kind == "disk" and not can_mount():
        pytest.skip("no right to mount a file system that can be full")
    found = trial.round(kind, random.Random(f"test {kind}"))
    assert found.passed, found
    assert found.starts == (2 if kind in ("restart", "half", "disk") else 1)
    if kind == "disk":
        assert "No space left" in found.last_line


def test_what_was_computed_is_on_record(trial: FaultTest) -> None:
    """Else nothing would ever have been done again."""
    output = trial.clean_output
    done = [line for path in record_folder(output).iterdir() for line in path.read_text().splitlines()]
    assert sum(len(line.split()) - 1 for line in done if line.startswith("done")) == trial.rows.num_rows
    assert repetitions(output, "begun") == repetitions(output, "done") == 0
