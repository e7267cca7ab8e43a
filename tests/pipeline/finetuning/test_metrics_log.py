"""The file that a fine-tuning run writes about itself."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.finetuning.metrics_log import (
    GenerationProbe,
    HeldOutEvaluation,
    MetricsLog,
    TrainStep,
    evaluations,
    evaluations_of,
    steps_done,
    tail,
)
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit

PROBE = GenerationProbe(2, 20, {"Calculator": 9, "QA": 2, "MT": 0}, 3, 1, 5, 8, {"Calculator": 15, "QA": 5})


def written(path: Path) -> list[tuple[int, str]]:
    events = [json.loads(line) for line in path.read_text().splitlines()]
    return [(event["step"], "loss" if "loss" in event else "perplexity") for event in events]


def test_steps_beyond_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.append(HeldOutEvaluation(0, 2.0, 10, 1.0, 7))
    for step in range(1, 6):
        log.append(TrainStep(step, 1.0, 0.1, None))
        if step == 3:
            log.append(HeldOutEvaluation(3, 1.5, 10, 1.25, 7))
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # killed in the middle of a line
    resumed = MetricsLog(path, 3)
    resumed.append(TrainStep(4, 1.0, 0.1, None))
    expected = [(0, "perplexity"), (1, "loss"), (2, "loss"), (3, "loss"), (3, "perplexity"), (4, "loss")]
    assert written(path) == expected
    found = [json.loads(line) for line in path.read_text().splitlines() if "held_out_loss" in line]
    plain = {"plain_tokens": 7, "tokens": 10}
    assert found == [
        {"step": 0, "held_out_loss": 2.0, "plain_loss": 1.0, "perplexity": math.exp(1.0)} | plain,
        {"step": 3, "held_out_loss": 1.5, "plain_loss": 1.25, "perplexity": math.exp(1.25)} | plain,
    ]
    MetricsLog(path, 0)
    assert written(path) == []


def test_perplexity_is_that_of_the_texts_without_calls() -> None:
    assert HeldOutEvaluation(1, 9.0, 5, math.log(7.5), 3).perplexity == pytest.approx(7.5)
    assert HeldOutEvaluation(1, math.log(7.5), 3).perplexity == pytest.approx(7.5), "of an earlier version"
    assert HeldOutEvaluation(1, 1.0, 5, 1e4, 3).perplexity == math.inf


def test_evaluations_are_read_from_files_of_this_and_of_an_earlier_version(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert evaluations(path, 9) == []
    log = MetricsLog(path, 0)
    log.append(PROBE)
    log.append(HeldOutEvaluation(0, 2.0, 10, 1.0, 7))
    log.append(TrainStep(1, 1.0, 0.1, None))
    with path.open("a") as file:
        file.write('{"step": 2, "held_out_loss": 1.5, "tokens": 10, "perplexity": 4.5}\n')
        file.write('{"step": 4, "held_out_loss": 1.0, "tokens": 10, "perplexity": 2.7}\n')
        file.write('{"step": 4, "held_o')
    read = [HeldOutEvaluation(0, 2.0, 10, 1.0, 7), HeldOutEvaluation(2, 1.5, 10)]
    assert evaluations(path, 3) == read
    path.write_text('{"loss": 1.0}\n')
    with pytest.raises(ConfigurationError, match=r"metrics\.jsonl is damaged"):
        evaluations(path, 3)


def test_values_of_other_types_are_no_evaluation() -> None:
    events = [
        {"step": 1, "held_out_loss": "1.0", "tokens": 3},
        {"step": 2, "held_out_loss": 1.0},
        {"step": 3, "held_out_loss": 1.0, "tokens": 3, "plain_loss": []},
        {"step": 4, "held_out_loss": 1.0, "tokens": 3, "other": 1},
    ]
    assert evaluations_of(events) == [HeldOutEvaluation(4, 1.0, 3)]


def test_one_line_is_logged_per_evaluation_of_this_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, 0).append(HeldOutEvaluation(0, math.log(9.0), 10))
    with caplog.at_level(logging.INFO, "pipeline.finetuning.metrics_log"), tail(path, 4):
        log = MetricsLog(path, 0)
        log.append(replace(PROBE, step=0))
        log.append(HeldOutEvaluation(0, math.log(9.0), 10))
        log.append(TrainStep(1, 2.25, 0.1, None))
        log.append(TrainStep(2, 1.25, 0.1, None))
        log.append(PROBE)
        log.append(HeldOutEvaluation(2, 0.5, 10, math.log(8.0), 7))
    assert [record.message for record in caplog.records] == [
        "step 2 of 4: loss 1.2500, held-out perplexity 8.0000, held-out loss 0.5000",
        "step 2 of 4: calls on 20 prompts: Calculator 9, QA 2; 8 of the tool in C*, 3 malformed, "
        "1 unfinished, 5 without",
    ]


def test_steps_are_counted_in_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert steps_done(path) == 0
    path.write_text(
        '{"step": 0, "perplexity": 2.0}\n{"step": 3, "loss": 1.0}\n{"loss": 1.0}\n[7]\n{"step": 4, "lo'
    )
    assert steps_done(path) == 3
