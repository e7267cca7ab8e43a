"""The gauges of a fine-tuning run."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest

from pipeline.finetuning.watching.metrics import EVALUATED, MAX_STEPS, METRICS, STEPS_DONE, event_samples
from pipeline.finetuning.watching.metrics_log import StepMeasures

pytestmark = pytest.mark.unit


def test_a_step_and_an_evaluation_become_samples() -> None:
    step = {"step": 3, "loss": 1.5, "gradient_norm": None, "utilisation": 0.4, "memory_bytes": 7}
    samples = event_samples(step, 10)
    assert samples[:2] == [(STEPS_DONE, (), 3.0), (MAX_STEPS, (), 10.0)]
    assert {metric.name.removeprefix("toolformer_training_"): value for metric, _, value in samples[2:]} == {
        "loss": 1.5,
        "utilisation": 0.4,
        "memory_bytes": 7,
    }
    found = {
        "step": 3,
        "held_out_loss": 1.0,
        "tokens": 9,
        "perplexity": math.inf,
        "calls": {"QA": 2, "MT": 0},
    }
    evaluated = event_samples(found, 10)[3:]
    assert evaluated == [(EVALUATED, ("calls/QA",), 2), (EVALUATED, ("calls/MT",), 0)]


def test_every_measure_of_a_step_has_a_gauge() -> None:
    event = {"step": 1} | {measure.name: 1.0 for measure in fields(StepMeasures)}
    metrics = [metric for metric, _, _ in event_samples(event, 2)]
    assert EVALUATED not in metrics
    assert len(metrics) == 2 + len(fields(StepMeasures))


def test_samples_fit_their_metrics() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    event = {"step": 1, "loss": 1.0, "calls": {"QA": 1}}
    assert all(len(labels) == len(metric.labels) for metric, labels, _ in event_samples(event, 2))
