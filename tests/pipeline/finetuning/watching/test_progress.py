"""What a terminal shows of a fine-tuning run."""

from __future__ import annotations

import logging
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tqdm import tqdm

from pipeline.finetuning.watching.metrics_log import (
    GenerationProbe,
    HeldOutEvaluation,
    MetricsLog,
    TrainStep,
)
from pipeline.finetuning.watching.progress import LINE, Follower, evaluation_text, progress_text, tail

pytestmark = pytest.mark.unit

PROBE = GenerationProbe(2, 20, {"Calculator": 9, "QA": 2, "MT": 0}, 3, 1, 5, 8, {"Calculator": 15, "QA": 5})


def test_one_line_is_logged_per_evaluation_of_this_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, 0).append(HeldOutEvaluation(0, math.log(9.0), 10))
    with caplog.at_level(logging.INFO, "pipeline.finetuning.watching.progress"), tail(path, 4):
        log = MetricsLog(path, 0)
        log.append(replace(PROBE, step=0))
        log.append(HeldOutEvaluation(0, math.log(9.0), 10))
        log.append(TrainStep(1, 2.25, 0.1, None))
        log.append(TrainStep(2, 1.25, 0.1, None))
        log.append(PROBE)
        log.append(HeldOutEvaluation(2, 0.5, 10, math.log(8.0), 7))
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}: step 2 of 4: loss 1.2500, held-out perplexity 8.0000, held-out loss 0.5000",
        f"{tmp_path}: step 2 of 4: calls on 20 prompts: Calculator 9, QA 2; 8 of the tool in C*, "
        "3 malformed, 1 unfinished, 5 without",
    ]


def test_the_progress_line_has_what_is_known() -> None:
    step = {"step": 3, "loss": 1.25, "learning_rate": 1e-5, "gradient_norm": 0.5, "tokens_per_s": 12_345.6}
    step |= {"flops_per_s": 4e12, "utilisation": 0.41, "memory_bytes": 3 * 2**30}
    assert progress_text(step | {"perplexity": 8.125}) == (
        "loss 1.2500, perplexity 8.125, rate 1e-05, norm 0.5, 12,346 tokens/s, 41% of peak, 3.0 GiB"
    )
    on_a_cpu = step | {"utilisation": None, "gradient_norm": None, "flops_per_s": 7.6e10}
    assert progress_text(on_a_cpu) == "loss 1.2500, rate 1e-05, 12,346 tokens/s, 76 GFLOP/s, 3.0 GiB"
    of_an_earlier_version = {"step": 3, "loss": 1.25, "learning_rate": 1e-5, "gradient_norm": None}
    assert progress_text(of_an_earlier_version) == "loss 1.2500, rate 1e-05"
    assert progress_text({}) == ""


def test_an_evaluation_is_logged_with_all_its_numbers() -> None:
    latest = {"step": 4, "held_out_loss": 1.0, "tokens": 9, "perplexity": math.e, "loss": 1.5, "seconds": 0.5}
    others = {"another_number": 3.25, "reason": "none"}
    assert evaluation_text(latest | others) == (
        "loss 1.5000, held-out perplexity 2.7183, held-out loss 1.0000, another number 3.25"
    )


def test_a_terminal_shows_the_latest_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A start that repeats steps, as after a lost worker, is followed, too."""
    path = tmp_path / "metrics.jsonl"
    bar = tqdm(total=8, bar_format=LINE, file=sys.stderr, mininterval=0)
    follower = Follower(path, bar, -1)
    follower.update()
    log = MetricsLog(path, 0)
    for step in (1, 2, 3):
        log.append(TrainStep(step, 4.0 - step, 0.1, None))
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    follower.update()
    assert (bar.n, follower.latest["loss"]) == (3, 1.0)
    log = MetricsLog(path, 1)
    follower.update()
    assert follower.latest["loss"] == 3.0
    for step in (2, 3, 4):
        log.append(TrainStep(step, 0.5, 0.1, None))
    follower.update()
    bar.close()
    assert (bar.n, follower.latest["step"]) == (4, 4)
    shown = capsys.readouterr().err
    assert "step 4 of 8" in shown
    assert "loss 0.5000, rate 0.1" in shown
