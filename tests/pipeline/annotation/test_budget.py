"""What ends a run whose budget is used up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.annotation import budget
from pipeline.annotation.budget import (
    BudgetExhaustedError,
    BudgetWatch,
    StopWhenDrained,
    drained_run,
    exhausted_budget,
)
from pipeline.annotation.progress import RunProgress
from pipeline.base.config import AnnotateConfig, RayConfig
from pipeline.storage.expected_texts import ExpectedTexts
from pipeline.storage.manifest import operational
from tools_service.serving import deployment

pytestmark = pytest.mark.unit


def config(**fields: Any) -> AnnotateConfig:
    return AnnotateConfig(output=Path("out"), **fields)


def test_the_budget_that_is_used_up_is_named() -> None:
    assert exhausted_budget(config(), 1e6, 1e6) is None
    assert exhausted_budget(config(max_hours=2), 1.99, 1e6) is None
    assert exhausted_budget(config(max_hours=2), 2.0, 0) == "max_hours = 2"
    assert exhausted_budget(config(max_hours=2, max_gpu_hours=0.5), 1.0, 0.5) == "max_gpu_hours = 0.5"


def test_a_budget_of_gpu_hours_needs_gpus() -> None:
    with pytest.raises(ValidationError, match="max_gpu_hours = 3: neither actors nor tools use a GPU"):
        config(max_gpu_hours=3, ray=RayConfig(gpus_per_actor=0))


def test_budgets_may_change_between_two_starts() -> None:
    assert operational(config())["max_hours"] is operational(config())["max_gpu_hours"] is True


def test_a_run_is_told_to_stop_and_ends_when_no_batch_is_in_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tools' replicas hold 1.5 GPUs, looked at every ten seconds."""
    now, told, held = [100.0], list[str](), list[float]()
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(deployment, "running_replicas", lambda _: {"QA": 2, "MT": 1, "Calendar": 1})
    progress = SimpleNamespace(
        stop=SimpleNamespace(remote=lambda: told.append("stop")),
        tools_hold=SimpleNamespace(remote=held.append),
    )
    given = config(max_hours=1.0)
    tools = {
        name: given.tools.of(name.upper()).model_copy(
            update={"deployment": given.tools.of(name.upper()).deployment.model_copy(update={"gpus": 0.5})}
        )
        for name in ("qa", "mt")
    }
    watch = BudgetWatch(given.model_copy(update={"tools": given.tools.model_copy(update=tools)}), began=100.0)
    with drained_run() as drained:
        watch.begin(progress, {"QA": "a", "MT": "b"}, drained)
        StopWhenDrained().on_execution_step(None)
        watch.look(RunProgress(5, None, batches=3, gpu_hours=0.25))
        now[0] += 9
        watch.look(RunProgress(5, None, batches=3, gpu_hours=0.25))
        assert (told, held) == ([], [1.5])
        now[0] += 3_600
        watch.look(RunProgress(5, None, batches=3, gpu_hours=0.25))
        assert (told, held, watch.exhausted) == (["stop"], [1.5, 1.5], "max_hours = 1")
        watch.look(RunProgress(6, None, batches=1, gpu_hours=0.5))
        StopWhenDrained().on_execution_step(None)
        for whole in (ExpectedTexts(texts=7, is_estimate=False), ExpectedTexts(texts=6, is_estimate=False)):
            watch.look(RunProgress(7, whole, batches=0, gpu_hours=0.5))  # there is nothing left to refuse
        StopWhenDrained().on_execution_step(None)
        watch.look(RunProgress(7, ExpectedTexts(texts=7, is_estimate=False), refused=True, gpu_hours=0.75))
        assert (told, watch.gpu_hours) == (["stop"], 0.75)
        with pytest.raises(BudgetExhaustedError):
            StopWhenDrained().on_execution_step(None)
    StopWhenDrained().on_execution_step(None)
    assert BudgetExhaustedError.exit_code == 3


def test_hours_are_looked_at_while_the_tools_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: now[0]))
    watch = BudgetWatch(config(max_hours=0.5), began=100.0)
    monkeypatch.setattr(deployment, "have_started", lambda _: False)
    monkeypatch.setattr(deployment, "time", SimpleNamespace(sleep=lambda _: now.__setitem__(0, now[0] + 600)))
    with pytest.raises(BudgetExhaustedError, match=r"max_hours = 0\.5 is used up, while the tools were"):
        deployment.wait_until_started(["a"], watch.require_hours)
    assert now[0] == 100 + 1_800
    assert watch.exhausted == "max_hours = 0.5"
