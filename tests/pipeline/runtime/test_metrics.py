"""A recorder of metrics that never gets in the way, and labels with few values."""

from __future__ import annotations

import pytest

from pipeline.runtime.metrics import MAX_REASONS, Metric, Recorder

pytestmark = pytest.mark.unit

REASONS = Metric("counter", "discarded", "Discarded draws", ("tool", "reason"))
STEPS = Metric("gauge", "steps", "Steps taken")


class _Kept:
    """Stands where Ray's counter would."""

    def __init__(self) -> None:
        self.labels: list[dict[str, str]] = []

    def inc(self, number: float, labels: dict[str, str]) -> None:
        self.labels.append(labels)


def test_reasons_without_end_become_other() -> None:
    recorder, kept = Recorder("here"), _Kept()
    recorder._metrics[REASONS.name] = kept
    for number in range(3 * MAX_REASONS):
        recorder._record_sample(REASONS, ("MT", f"reason {number}"), 1.0)
    recorder._record_sample(REASONS, ("MT", "reason 0"), 1.0)
    recorder._record_sample(REASONS, ("MT", "reason 1"), 0.0)
    reasons = [labels["reason"] for labels in kept.labels]
    assert len(set(reasons)) == MAX_REASONS + 1
    assert reasons[-2:] == ["other", "reason 0"]
    assert {labels["run"] for labels in kept.labels} == {"here"}


def test_without_ray_nothing_is_recorded() -> None:
    recorder = Recorder("here")
    recorder.record([(STEPS, (), 1.0)])
    assert recorder._metrics == {}


@pytest.mark.parametrize(
    ("metric", "names"),
    [
        (REASONS, ("ray_discarded_total",)),
        (Metric("gauge", "a", "b"), ("ray_a",)),
        (Metric("histogram", "a", "b", boundaries=(1,)), ("ray_a_bucket", "ray_a_sum", "ray_a_count")),
    ],
)
def test_names_as_prometheus_sees_them(metric: Metric, names: tuple[str, ...]) -> None:
    assert metric.exported == names
