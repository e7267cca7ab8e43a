"""Several processes at once do what one does, and one that fails keeps nobody waiting."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from bench.annotate import ratios, same_calls
from bench.processes import in_processes, interleaved, merged
from bench.systems import Run, run_engine
from bench.workload import Subject
from pipeline.base.records import Cost
from tools_service.base.errors import ToolformerError

pytestmark = pytest.mark.unit

ARGS = argparse.Namespace(
    device="cpu",
    dtype="float32",
    max_batch_tokens=None,
    k=2,
    m=2,
    tau_s=0.0,
    texts=5,
    corpus=["demo/pages"],
    max_tokens=112,
    against=None,
    plain_texts=2,
)
several = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")


@several
def test_two_processes_find_what_one_finds() -> None:
    subject = Subject.of("demo", "Calculator", ARGS)
    alone, _ = run_engine("engine", subject.annotator(), subject.model, subject.texts)
    found = in_processes(2, "demo", "Calculator", ARGS)
    both = found.engine
    assert both.name == "engine, 2 processes"
    same = same_calls(alone.calls, both.calls, subject.settings.tau_f)
    assert same["scored"][0] == same["scored_by_both"] > 0
    assert same["same_kept"]
    assert same["largest_difference_of_a_loss"] < 1e-4
    assert both.candidates == alone.candidates
    assert found.plain is not None
    plainly = same_calls(both.calls[:2], found.plain.calls, subject.settings.tau_f)
    assert plainly["scored"][0] == plainly["scored_by_both"] > 0
    assert plainly["same_kept"]


@several
def test_an_error_is_the_failed_process_s(tmp_path: Path) -> None:
    with pytest.raises(ToolformerError, match=str(tmp_path)):
        in_processes(2, str(tmp_path), "Calculator", ARGS)


def test_more_processes_than_cores_are_refused() -> None:
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(SystemExit, match=f"gives us {cores} cores"):
        in_processes(cores + 1, "demo", "Calculator", ARGS)


def test_runs_together_take_the_longest_and_cost_the_sum() -> None:
    one = Run("engine", {"wall_s": 2.0, "cpu_s": 3.0, "peak_mib": 5.0}, 7, [[], []], {"plus": Cost(11)}, 13)
    other = Run("engine", {"wall_s": 1.0, "cpu_s": 1.0, "peak_mib": 1.0}, 1, [[]], {"empty": Cost(1)}, 1)
    found = merged([one, other])
    assert found.took == {"wall_s": 2.0, "cpu_s": 4.0, "peak_mib": 6.0}
    assert found.usage == {"plus": Cost(11), "empty": Cost(1)}
    assert (found.candidates, found.forwards, len(found.calls)) == (8, 14, 3)


def test_texts_come_back_in_the_order_they_were_dealt_out() -> None:
    texts = list(range(8))
    assert interleaved([texts[n::3] for n in range(3)]) == texts


def test_each_side_of_the_ratio_is_its_best() -> None:
    rows = [
        {"contestant": name, "texts_per_s": rate}
        for name, rate in {
            "engine": 4.0,
            "engine, 2 processes": 6.0,
            "vLLM": 3.0,
            "plain procedure": 9.0,
        }.items()
    ]
    assert ratios(rows) == {"vLLM": 2.0, "plain procedure": 0.667}
    assert ratios(rows[:2]) == {}
