"""The file that a fine-tuning run writes about itself."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest

from pipeline.finetuning.metrics_log import HeldOutEvaluation, MetricsLog, TrainStep, steps_done, tail

pytestmark = pytest.mark.unit


def written(path: Path) -> list[tuple[int, str]]:
    events = [json.loads(line) for line in path.read_text().splitlines()]
    return [(event["step"], "loss" if "loss" in event else "perplexity") for event in events]


def test_steps_beyond_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.append(HeldOutEvaluation(0, 2.0, 10))
    for step in range(1, 6):
        log.append(TrainStep(step, 1.0, 0.1, None))
        if step == 3:
            log.append(HeldOutEvaluation(3, 1.5, 10))
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # killed in the middle of a line
    resumed = MetricsLog(path, 3)
    resumed.append(TrainStep(4, 1.0, 0.1, None))
    expected = [(0, "perplexity"), (1, "loss"), (2, "loss"), (3, "loss"), (3, "perplexity"), (4, "loss")]
    assert written(path) == expected
    evaluations = [json.loads(line) for line in path.read_text().splitlines() if "held_out_loss" in line]
    assert evaluations == [
        {"step": 0, "held_out_loss": 2.0, "tokens": 10, "perplexity": math.exp(2.0)},
        {"step": 3, "held_out_loss": 1.5, "tokens": 10, "perplexity": math.exp(1.5)},
    ]
    MetricsLog(path, 0)
    assert written(path) == []


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    assert HeldOutEvaluation(1, math.log(7.5), 3).perplexity == pytest.approx(7.5)


def test_one_line_is_logged_per_evaluation_of_this_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, 0).append(HeldOutEvaluation(0, math.log(9.0), 10))
    with caplog.at_level(logging.INFO, "pipeline.finetuning.metrics_log"), tail(path, 4):
        log = MetricsLog(path, 0)
        log.append(HeldOutEvaluation(0, math.log(9.0), 10))
        log.append(TrainStep(1, 2.25, 0.1, None))
        log.append(TrainStep(2, 1.25, 0.1, None))
        log.append(HeldOutEvaluation(2, math.log(8.0), 10))
    assert [record.message for record in caplog.records] == [
        "step 2 of 4: loss 1.2500, held-out perplexity 8.0000"
    ]


def test_steps_are_counted_in_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert steps_done(path) == 0
    path.write_text(
        '{"step": 0, "perplexity": 2.0}\n{"step": 3, "loss": 1.0}\n{"loss": 1.0}\n[7]\n{"step": 4, "lo'
    )
    assert steps_done(path) == 3
