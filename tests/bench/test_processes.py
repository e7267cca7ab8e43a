"""Several processes give the results of one, and a process that fails ends the others."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch

from bench.comparison import compare_calls
from bench.measuring import matrix_rates
from bench.processes import interleave, merge_runs, run_in_processes
from bench.systems import SystemRun, run_engine
from bench.workload import Workload
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
    prompts=Path("demo/prompts"),
    max_tokens=112,
    against=[],
    rounds=1,
    plain_texts=2,
)
two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")


@two_cores
def test_two_processes_find_what_one_finds() -> None:
    workload = Workload.create("demo", "Calculator", ARGS)
    alone, _ = run_engine("engine", workload.annotator(), workload.model, workload.texts)
    together = run_in_processes(2, "demo", "Calculator", ARGS)
    assert len(together.engine) == ARGS.rounds
    assert together.matrix_rates.keys() == matrix_rates(torch.device("cpu"), torch.float32).keys()
    both = together.engine[-1]
    assert both.name == "engine, 2 processes"
    same = compare_calls(alone.calls, both.calls, workload.settings.tau_f)
    assert same["scored"][0] == same["scored_by_both"] > 0
    assert same["same_kept"]
    assert same["max_loss_difference"] < 1e-4
    assert both.candidates == alone.candidates
    assert together.plain is not None
    plain = compare_calls(both.calls[:2], together.plain.calls, workload.settings.tau_f)
    assert plain["scored"][0] == plain["scored_by_both"] > 0
    assert plain["same_kept"]


@two_cores
def test_the_error_of_the_failed_process_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ToolformerError, match=str(tmp_path)):
        run_in_processes(2, str(tmp_path), "Calculator", ARGS)


def test_more_processes_than_cores_are_refused() -> None:
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(SystemExit, match=f"gives us {cores} cores"):
        run_in_processes(cores + 1, "demo", "Calculator", ARGS)


def test_runs_together_take_the_longest_and_cost_the_sum() -> None:
    first = SystemRun(
        "engine", {"wall_s": 2.0, "cpu_s": 3.0, "peak_mib": 5.0}, 7, [[], []], {"plus": Cost(11)}, 13
    )
    second = SystemRun(
        "engine", {"wall_s": 1.0, "cpu_s": 1.0, "peak_mib": 1.0}, 1, [[]], {"empty": Cost(1)}, 1
    )
    both = merge_runs([first, second])
    assert both.timing == {"wall_s": 2.0, "cpu_s": 4.0, "peak_mib": 6.0}
    assert both.usage == {"plus": Cost(11), "empty": Cost(1)}
    assert (both.candidates, both.forwards, len(both.calls)) == (8, 14, 3)


def test_texts_come_back_in_their_original_order() -> None:
    texts = list(range(8))
    assert interleave([texts[n::3] for n in range(3)]) == texts
