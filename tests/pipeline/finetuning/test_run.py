"""Fine-tuning as a run: what it refuses, what it leaves, what happens when processes die."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.base.config import FinetuneConfig
from pipeline.finetuning.examples import digest, load_examples
from pipeline.finetuning.metrics_log import HeldOutEvaluation, MetricsLog
from pipeline.finetuning.run import finetune
from pipeline.finetuning.run_folder import FinetuneManifest, RunFolder, RunIdentity
from tests.pipeline.finetuning.data import (
    base_model,
    configuration,
    mean_loss,
    plain_torch,
    rows,
    write,
)
from tools_service.base.errors import ConfigurationError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetuning")
    base_model(folder / "base")
    write(folder / "augmented", [rows(20), rows(30)[20:]])
    return folder


BEST = HeldOutEvaluation(2, 1.5, 10)


def finished(config: FinetuneConfig) -> RunFolder:
    """A finished run, without its model."""
    run = RunFolder(config.output)
    run.path.mkdir()
    MetricsLog(run.metrics, 0).append(BEST)
    values: dict[str, Any] = {"versions": {}, "created": "", "texts": {}, "best": BEST, "wall_s": 0.0}
    manifest = FinetuneManifest(config=config, data=digest(config.data), **values)
    (run.path / "manifest.json").write_text(manifest.model_dump_json())
    return run


@pytest.mark.unit
@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"held_out": 23}, "30 texts are not enough for held_out = 23 and one batch of batch_size = 8"),
        ({"sequence_length": 2_048}, "sequence_length = 2048"),
        ({"data": Path("nowhere")}, "no Parquet files"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(
    folder: Path, overrides: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        finetune(configuration(folder, **overrides))
    assert not (folder / "model").exists()


@pytest.mark.unit
def test_a_model_that_is_not_there_is_named(folder: Path) -> None:
    config = configuration(folder)
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": "./no/model"})})
    with pytest.raises(ConfigurationError, match=r"model\.path '\./no/model'"):
        finetune(config)


@pytest.mark.unit
def test_batches_must_divide_among_the_workers(folder: Path) -> None:
    with pytest.raises(ValidationError, match=r"batch_size = 8 is not a multiple .* 2 x 3"):
        configuration(folder, micro_batch_size=3)
    assert configuration(folder, micro_batch_size=1).accumulation == 4


@pytest.mark.unit
def test_a_finished_run_is_left_alone(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = configuration(folder, output=tmp_path / "model")
    run = finished(config)
    metrics = run.metrics.read_text()
    with caplog.at_level(logging.INFO):
        result = finetune(config.model_copy(update={"max_failures": 7}))
    assert result == run.manifest()
    assert result.best == BEST
    assert run.metrics.read_text() == metrics
    assert "finished before" in caplog.text


@pytest.mark.unit
@pytest.mark.parametrize("name", ["manifest.json", "checkpoints/run.json"])
def test_a_run_of_an_earlier_version_is_recognised(folder: Path, tmp_path: Path, name: str) -> None:
    """Its files called the configuration `recipe`, and max_batch_tokens `batch_tokens`."""
    config = configuration(folder, output=tmp_path / "model")
    run = finished(config)
    values = json.loads((run.path / "manifest.json").read_text())
    values["recipe"] = values.pop("config")
    values["recipe"]["model"]["batch_tokens"] = values["recipe"]["model"].pop("max_batch_tokens")
    (run.path / "manifest.json").unlink()
    run.checkpoints.mkdir()
    is_finished = name == "manifest.json"
    kept = values if is_finished else {key: values[key] for key in ("recipe", "data")}
    (run.path / name).write_text(json.dumps(kept))
    assert run.claim(RunIdentity(config=config, data=digest(config.data)), force=False) is is_finished


@pytest.mark.unit
def test_other_settings_or_data_are_not_mixed_into_a_run(folder: Path, tmp_path: Path) -> None:
    config = configuration(folder, output=tmp_path / "model")
    run = finished(config)
    with pytest.raises(ConfigurationError, match=r"--force.*Different: learning_rate: 0\.001 → 0\.002$"):
        finetune(config.model_copy(update={"learning_rate": 0.002}))
    other = write(tmp_path / "augmented", [rows(30)])
    with pytest.raises(ConfigurationError, match="data: other content"):
        finetune(config.model_copy(update={"data": other}))
    (run.path / "manifest.json").write_text("{")
    with pytest.raises(ConfigurationError, match="not written by this version of finetune"):
        finetune(config)


@pytest.mark.unit
@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_somebody_else_is_not_touched(folder: Path, tmp_path: Path, force: bool) -> None:
    mine = tmp_path / "model" / "letters.txt"
    mine.parent.mkdir()
    mine.write_text("dear")
    with pytest.raises(ConfigurationError, match="not empty"):
        finetune(configuration(folder, output=mine.parent), force=force)
    assert [path.name for path in mine.parent.iterdir()] == ["letters.txt"]


@pytest.mark.unit
def test_force_removes_a_run_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    config = configuration(folder, output=tmp_path / "model")
    run = finished(config)
    (run.path / "model.safetensors").touch()
    this = RunIdentity(config=config, data=digest(config.data))
    run.check()
    assert run.claim(this, force=False)
    assert not run.claim(this, force=True)
    assert {path.name for path in run.path.iterdir()} == {"checkpoints"}
    assert not run.claim(this, force=False), "begun, not finished"
    with pytest.raises(ConfigurationError, match="holds model"):
        finetune(configuration(folder, output=folder), force=True)
    with pytest.raises(ConfigurationError, match="holds data"):
        finetune(configuration(folder, output=folder / "augmented"), force=True)


STEPS = 40


def steps(config: FinetuneConfig) -> list[dict[str, Any]]:
    path = RunFolder(config.output).metrics
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_step(config: FinetuneConfig, step: int, alive: Callable[[], bool]) -> None:
    while not any(event["step"] >= step for event in steps(config)):
        assert alive(), f"the run ended before step {step}"
        time.sleep(0.05)


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_killed_driver_and_a_killed_worker_change_nothing(
    folder: Path, ray_cluster: None, caplog: pytest.LogCaptureFixture
) -> None:
    """One run undisturbed; another whose driver is killed, and after its second start one of its workers."""
    import ray

    values = {"max_steps": STEPS, "evaluate_every": 10, "learning_rate": 1e-2}
    config = configuration(folder, output=folder / "undisturbed", **values)
    with caplog.at_level(logging.INFO):
        whole = finetune(config)
    assert sum("held-out perplexity" in record.message for record in caplog.records) == 1 + STEPS // 10
    check_result(config, whole.best)

    disturbed = configuration(folder, output=folder / "disturbed", **values)
    code = (
        "import sys; from pipeline.base.config import FinetuneConfig; "
        "from pipeline.finetuning.run import finetune; "
        "finetune(FinetuneConfig.model_validate_json(sys.argv[1]))"
    )
    address = ray.get_runtime_context().gcs_address
    driver = subprocess.Popen(
        [sys.executable, "-c", code, disturbed.model_dump_json()],
        env=os.environ | {"RAY_ADDRESS": address},
        cwd=Path(__file__).parents[3],
    )
    try:
        wait_for_step(disturbed, 12, lambda: driver.poll() is None)
    finally:
        driver.kill()
        driver.wait()
    assert not (disturbed.output / "manifest.json").exists()

    killer = threading.Thread(target=kill_a_worker_after, args=(disturbed, 25), daemon=True)
    killer.start()
    again = finetune(disturbed)
    killer.join(timeout=1)
    assert not killer.is_alive(), "no worker was killed"
    assert steps(disturbed) == steps(config)
    assert (again.best, again.texts) == (whole.best, whole.texts)
    assert finetune(disturbed) == again


def kill_a_worker_after(config: FinetuneConfig, step: int) -> None:
    wait_for_step(config, step, lambda: True)
    workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in p.name()]
    max(workers, key=lambda p: p.create_time()).kill()


def check_result(config: FinetuneConfig, best: HeldOutEvaluation) -> None:
    """Two workers took the steps of plain torch, and the best of them is the folder's model."""
    tokenizer = AutoTokenizer.from_pretrained(config.output)
    data = load_examples(config, tokenizer)
    losses, norms, _ = plain_torch(config, data, 4)
    events = steps(config)
    taken = [event for event in events if "loss" in event]
    assert [event["loss"] for event in taken[:4]] == pytest.approx(losses, abs=1e-4)
    assert [event["gradient_norm"] for event in taken[:4]] == pytest.approx(norms, rel=1e-3)
    evaluations = [event["held_out_loss"] for event in events if "held_out_loss" in event]
    assert best.held_out_loss == min(evaluations[1:]) < evaluations[0]
    model = AutoModelForCausalLM.from_pretrained(config.output)
    with torch.no_grad():
        loss = mean_loss(model, data.held_out, range(len(data.held_out)))
    assert best.held_out_loss == pytest.approx(float(loss), abs=1e-5)
    manifest = RunFolder(config.output).manifest()
    assert (manifest.best, manifest.texts["trained_on"] + manifest.texts["held_out"]) == (best, 30)
    assert not RunFolder(config.output).checkpoints.exists()
