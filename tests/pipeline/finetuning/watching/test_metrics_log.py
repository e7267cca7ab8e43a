"""The file that a fine-tuning run writes about itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pipeline.finetuning.watching.metrics_log import (
    GenerationProbe,
    HeldOutEvaluation,
    MetricsLog,
    TrainStep,
    evaluations,
    evaluations_of,
    numbers,
    steps_done,
    without_measures,
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


def test_steps_are_counted_in_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert steps_done(path) == 0
    path.write_text(
        '{"step": 0, "perplexity": 2.0}\n{"step": 3, "loss": 1.0}\n{"loss": 1.0}\n[7]\n{"step": 4, "lo'
    )
    assert steps_done(path) == 3


MEASURED = {
    "seconds": 0.5,
    "tokens_per_s": 12_345.6,
    "flops_per_s": 4e12,
    "utilisation": 0.41,
    "memory_bytes": 3 * 2**30,
}


def test_a_repeated_step_differs_in_its_measures_only(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    first = log.append(TrainStep(1, 2.0, 0.1, None, **MEASURED))  # type: ignore[arg-type]
    again = log.append(TrainStep(1, 2.0, 0.1, None, **MEASURED | {"seconds": 9.0}))  # type: ignore[arg-type]
    assert first != again
    assert without_measures(first) == without_measures(again)
    assert without_measures(first) == {"step": 1, "loss": 2.0, "learning_rate": 0.1, "gradient_norm": None}
    assert TrainStep(1, 2.0, 0.1, None, seconds=1.0) == TrainStep(1, 2.0, 0.1, None, seconds=2.0)
    assert TrainStep(1, 2.0, 0.1, None) != TrainStep(1, 2.5, 0.1, None)


def test_numbers_are_finite_and_named() -> None:
    line = {"step": 1, "loss": 2, "perplexity": math.inf, "norm": math.nan, "ok": True, "note": "x"}
    assert numbers(line | {"calls": {"QA": 1, "of": None}, "empty": {}}) == {"loss": 2, "calls/QA": 1}
