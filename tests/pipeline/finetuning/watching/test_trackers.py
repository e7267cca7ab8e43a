"""Curves in TensorBoard files, in order and once, and trackers that are missing or fail."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.watching import trackers
from pipeline.finetuning.watching.trackers import Trackers, require_installed, tracked_values
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit


def config(folder: Path, *names: str) -> FinetuneConfig:
    return FinetuneConfig.model_validate({"output": folder, "trackers": names})


def step(number: int) -> dict[str, Any]:
    return {"step": number, "loss": 2.0 / number, "gradient_norm": None, "seconds": 0.5}


def evaluation(number: int) -> dict[str, Any]:
    values = {"held_out_loss": 1.0 / (1 + number), "perplexity": float("inf")}
    return {"step": number, **values}


def probe(number: int) -> dict[str, Any]:
    return {"step": number, "prompts": 20, "calls": {"QA": number}}


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every value in the files, those included that TensorBoard would hide as overtaken."""
    read = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=False)
    read.Reload()
    names = read.Tags()["scalars"]
    return {name: [(event.step, event.value) for event in read.Scalars(name)] for name in names}


def test_tensorboard_has_every_number_once(tmp_path: Path) -> None:
    started = Trackers(config(tmp_path, "tensorboard"), [])
    started.log(evaluation(0))
    for number in range(1, 6):
        started.log(step(number))
    started.close()  # killed after its last checkpoint, of step 3
    kept = [probe(0), evaluation(0), *map(step, range(1, 4)), probe(3), evaluation(3)]
    resumed = Trackers(config(tmp_path, "tensorboard"), kept)
    for number in range(4, 8):
        resumed.log(step(number))
    resumed.close()
    found = curves(tmp_path)
    of_evaluations = {"held_out/held_out_loss", "probe/calls/QA", "probe/prompts"}
    assert set(found) == {"train/loss", "train/seconds"} | of_evaluations
    assert [number for number, _ in found["train/loss"]] == list(range(1, 8))
    assert [value for _, value in found["train/loss"]] == pytest.approx([2.0 / n for n in range(1, 8)])
    assert found["probe/calls/QA"] == [(0, 0.0), (3, 3.0)]


def test_only_numbers_are_tracked() -> None:
    line = step(4) | {"text": "a secret", "texts": ["a", "b"], "done": True, "nested": {"why": "no"}}
    assert tracked_values(line) == {"train/loss": 0.5, "train/seconds": 0.5}


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    for name in ("wandb", "mlflow", "trackio"):
        if importlib.util.find_spec(name) is None:
            with pytest.raises(ConfigurationError, match=f"trackers: {name} needs the package {name}.*pip"):
                require_installed(config(tmp_path, name))
    require_installed(config(tmp_path, "tensorboard"))
    require_installed(config(tmp_path))


def test_mlflow_needs_a_place_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"mlflow"}
    monkeypatch.setattr(
        trackers.importlib.util,  # type: ignore[attr-defined]
        "find_spec",
        lambda name: object() if name in installed else None,
    )
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigurationError, match="MLFLOW_TRACKING_URI"):
        require_installed(config(tmp_path, "mlflow"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    require_installed(config(tmp_path, "mlflow"))


class Failing:
    """Takes two steps, then fails."""

    def __init__(self, config: FinetuneConfig) -> None:
        self.taken = 0

    def log(self, step: int, values: dict[str, float]) -> None:
        self.taken += 1
        if self.taken > 2:
            raise OSError("the server is gone")

    def close(self) -> None:
        raise AssertionError("a tracker that failed is left alone")


def test_a_tracker_that_fails_is_given_up_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(trackers._OPEN, "wandb", Failing)
    with caplog.at_level(logging.WARNING):
        both = Trackers(config(tmp_path, "wandb", "tensorboard"), [])
        for number in range(1, 9):
            both.log(step(number))
        both.close()
    assert [record.message for record in caplog.records] == [
        "wandb failed and gets no more curves: the server is gone: the training goes on, and metrics.jsonl "
        "has them all"
    ]
    assert len(curves(tmp_path)["train/loss"]) == 8


def test_a_tracker_that_cannot_be_opened_or_ends_the_program_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_account(config: FinetuneConfig) -> Any:
        raise SystemExit("no account")

    monkeypatch.setitem(trackers._OPEN, "trackio", no_account)
    tracked = Trackers(config(tmp_path, "trackio"), [step(1)])
    tracked.close()
    assert ["no account" in record.message for record in caplog.records] == [True]


def test_the_end_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import threading

    release = threading.Event()

    class Slow(Failing):
        def log(self, step: int, values: dict[str, float]) -> None:
            release.wait(30)

    monkeypatch.setitem(trackers._OPEN, "mlflow", Slow)
    monkeypatch.setattr(trackers, "_CLOSE_S", 0.1)
    tracked = Trackers(config(tmp_path, "mlflow"), [step(1)])
    tracked.close()
    release.set()
    assert ["has not taken all curves" in record.message for record in caplog.records] == [True]


def test_restarts_share_the_name_of_a_run(tmp_path: Path) -> None:
    first = trackers._run_id(config(tmp_path))
    assert trackers._run_id(config(tmp_path)) == first
    (tmp_path / trackers.RUN_ID).unlink()  # started over
    assert trackers._run_id(config(tmp_path)) != first
