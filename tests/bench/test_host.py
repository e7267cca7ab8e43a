"""The host's share of annotating: a stand-in for the model gives the real run's annotations."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import host
from bench.fixtures import small_run
from bench.fixtures.small_run import annotator_model, texts
from bench.workload import Workload
from pipeline.engine.model import LanguageModel
from tools_service.config import ToolsConfig
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit


def measured(tmp_path: Path) -> dict[str, Any]:
    method = small_run.method(small_run.write_prompts(tmp_path / "prompts"))
    tools = LocalTools.start(ToolsConfig(), ("Calculator", "Calendar"))
    workload = Workload(annotator_model(), tools, method, texts(4))
    return host.run(workload, 1, 5.0)


def test_the_stand_in_gives_the_draws_and_calls_of_the_real_run(tmp_path: Path) -> None:
    """`run` stops if an annotation differs, costs included."""
    counts, stages = measured(tmp_path).values()
    assert counts["draws"] > counts["candidates"] >= counts["calls scored"] > 0
    assert counts["tokens drawn and run"] > 0
    assert stages["draw"]["operators"] > 10
    for row in stages.values():
        assert row["host_ms"] >= row["operators"] * 5e-3 - 1e-9


def test_another_number_of_answers_stops_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shorter(self: host.Recorder) -> None:
        self._replays = True
        self.answers["log_probability"] = [answer[:-1] for answer in self.answers["log_probability"]]

    monkeypatch.setattr(host.Recorder, "replay", shorter)
    before = LanguageModel.log_probability
    with pytest.raises(SystemExit, match=r"log_probability: .* recorded were"):
        measured(tmp_path)
    assert LanguageModel.log_probability is before


def test_an_annotation_that_differs_stops_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrap = host.Recorder.wrap

    def changed(self: host.Recorder, name: str, function: Callable[..., torch.Tensor]) -> Any:
        answered = wrap(self, name, function)
        if name != "log_probability":
            return answered
        return lambda *args: answered(*args) - self._replays * 1e-3

    monkeypatch.setattr(host.Recorder, "wrap", changed)
    with pytest.raises(SystemExit, match="differs from the real one"):
        measured(tmp_path)


def test_a_stage_is_timed_without_the_stages_within_it() -> None:
    watch = host.Stopwatch()

    def spin(seconds: float) -> None:
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass

    inner = watch.wrap("inner", spin)

    def work() -> None:
        spin(0.01)
        inner(0.1)

    watch.wrap("outer", work)()
    assert watch.seconds["inner"] > 0.09
    assert 0.009 < watch.seconds["outer"] < watch.seconds["inner"]
