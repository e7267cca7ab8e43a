"""Our engine and another one in turns; the other is played by the tests' own model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from bench.comparison import compare_calls
from bench.fixtures import small_run
from bench.fixtures.small_run import annotator_model, texts
from bench.opponents import opponent
from bench.side_by_side import run_systems
from bench.workload import Workload
from pipeline.base.config import MethodConfig
from tests.bench.opponents.fake_worker import FakeWorker
from tools_service.config import ToolsConfig
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit


class FakeProcess:
    """A worker's process that is none."""

    def __init__(self, *start: Any) -> None:
        self.start, self.worker, self.methods, self.closed = start, FakeWorker(annotator_model()), [], False

    def request(self, method: str, **fields: Any) -> dict[str, Any]:
        self.methods.append(method)
        if method == "load":
            return {"versions": {"fake": "1"}}
        return {"peak_mib": 7.0} if method == "memory" else self.worker(method, **fields)

    def close(self) -> None:
        self.closed = True


def test_all_rounds_run_with_one_loaded_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    processes: list[FakeProcess] = []

    def start(*of: Any) -> FakeProcess:
        processes.append(FakeProcess(*of))
        return processes[-1]

    monkeypatch.setattr(opponent, "WorkerProcess", start)
    settings = small_run.method(small_run.write_prompts(tmp_path / "prompts"))
    method: MethodConfig = settings.model_copy(update={"tools": ("Calculator",)})
    tools = LocalTools.start(ToolsConfig(), ("Calculator",))
    workload = Workload(annotator_model(), tools, method, texts(3))
    args = argparse.Namespace(against=["vllm"], pythons={"vllm": "some/python"}, rounds=2, plain_texts=0)
    waits: list[int] = []
    runs = run_systems(workload, [], args, lambda: waits.append(len(processes)))
    [process] = processes
    assert process.closed
    assert process.start[1:3] == ("--vllm-python", "some/python")
    assert process.methods.count("load") == 1
    assert process.methods.count("reset") == 3 + 2  # three of them for the warm-up
    assert waits == [1] * 5  # before the matrix product and each of the four runs
    vllm = runs.opponents["vllm"]
    assert (len(runs.engine), len(vllm.runs)) == (2, 2)
    assert {run.timing["peak_mib"] for run in vllm.runs} == {7.0}
    assert sum(run.candidates for run in vllm.runs) > 0
    assert vllm.runs[0].usage["positions"] == vllm.runs[1].usage["positions"]
    same = compare_calls(runs.engine[0].calls, vllm.scored, method.calculator.tau_f)
    assert same["scored"] == [same["scored_by_both"]] * 2
    assert same["scored_by_both"] >= 2
    assert same["same_kept"]
    assert same["max_loss_difference"] < 1e-4
    assert vllm.setup["versions"] == {"fake": "1"}
