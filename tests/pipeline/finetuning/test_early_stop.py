"""A run that `patience` ends, on two workers, and the same after a start that did not come to its end."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline.finetuning.checkpoints.run_folder import RunFolder
from pipeline.finetuning.evaluation.choice import best_of, should_stop
from pipeline.finetuning.run import finetune
from pipeline.finetuning.watching.metrics_log import evaluations, without_measures
from tests.pipeline.finetuning.inputs import base_model, configuration, rows, write

PATIENCE, MAX_STEPS = 2, 30


def lines(folder: RunFolder) -> list[dict[str, Any]]:
    return [without_measures(json.loads(line)) for line in folder.metrics.read_text().splitlines()]


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_run_stops_early_and_a_resumed_one_at_the_same_step(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base_model(tmp_path / "base")
    write(tmp_path / "augmented", [rows(30)])
    # With this rate the loss soon rises.
    config = configuration(
        tmp_path, max_steps=MAX_STEPS, evaluate_every=1, learning_rate=0.03, patience=PATIENCE
    )
    folder = RunFolder(config.output)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune(config)
    before = lines(folder)
    taken = before[-1]["step"]
    assert 2 < taken < MAX_STEPS
    found = evaluations(folder.metrics, MAX_STEPS)
    assert [should_stop(found[: n + 1], config) for n in range(len(found))] == [False] * taken + [True]
    # Resumed: the evaluations of the first start count, or there would be further steps.
    with caplog.at_level(logging.INFO):
        manifest = finetune(config)
    assert lines(folder) == before
    assert (manifest.steps, manifest.stopped_early) == (taken, True)
    assert manifest.best == best_of(found, "perplexity") == found[taken - PATIENCE]
    assert f"stopped early at step {taken}, after 2 evaluations without a better perplexity" in caplog.text
    assert any("prompts" in line for line in before), "the probe has run"
    assert finetune(config) == manifest
