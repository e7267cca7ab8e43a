"""Metrics of this process on Ray's endpoint for Prometheus, each ``ray_<name>`` there.

In: the declaration of a metric and samples of it. Out: counters, gauges and histograms of Ray. Labels have
few values: no ids, no free text. Which metrics there are, the steps declare (annotation/metrics.py,
finetuning/watching/metrics.py; docs/operations.md lists them).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

logger = logging.getLogger(__name__)

MAX_REASONS = 40  # distinct reasons per process; further reasons are "other"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as Ray expects it. Every metric also has the label `run`, the output folder."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    description: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()

    @property
    def exported(self) -> tuple[str, ...]:
        """The names in Prometheus."""
        endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
        return tuple(f"ray_{self.name}{ending}" for ending in endings[self.kind])


# A metric, the values of its labels, and the number to add, set or observe.
Sample = tuple[Metric, tuple[str, ...], float]


class Recorder:
    """Records samples as Ray metrics of this process. Does nothing outside Ray; never raises."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._metrics: dict[str, Any] = {}
        self._reasons: set[str] = set()
        self._broken = False

    def record(self, samples: Iterable[Sample]) -> None:
        """Add to counters, set gauges, observe in histograms."""
        import ray

        if self._broken or not ray.is_initialized():
            return
        try:
            for sample in samples:
                self._record_sample(*sample)
        except Exception:  # a metrics failure must never fail the run
            self._broken = True
            logger.warning("metrics cannot be recorded, the run continues without them", exc_info=True)

    def _record_sample(self, metric: Metric, values: tuple[str, ...], number: float) -> None:
        labels = {"run": self._run, **dict(zip(metric.labels, values, strict=True))}
        if "reason" in labels:
            labels["reason"] = self._bounded(labels["reason"])
        if metric.name not in self._metrics:
            self._metrics[metric.name] = _ray_metric(metric)
        ray_metric = self._metrics[metric.name]
        if metric.kind == "gauge":
            ray_metric.set(number, labels)
        elif metric.kind == "histogram":
            ray_metric.observe(number, labels)
        elif number > 0:  # Ray refuses to add 0
            ray_metric.inc(number, labels)

    def _bounded(self, reason: str) -> str:
        """The reason, or "other" for a new reason above MAX_REASONS."""
        if reason not in self._reasons and len(self._reasons) >= MAX_REASONS:
            return "other"
        self._reasons.add(reason)
        return reason


def _ray_metric(metric: Metric) -> Any:
    from ray.util import metrics

    keys = ("run", *metric.labels)
    if metric.kind == "histogram":
        return metrics.Histogram(metric.name, metric.description, list(metric.boundaries), keys)
    ray_type = metrics.Counter if metric.kind == "counter" else metrics.Gauge
    return ray_type(metric.name, metric.description, keys)
