"""The metrics of a run of annotate: counters, gauges and a histogram on Ray's metrics endpoint.

In: the annotations of a finished batch, and the progress of the run. Out: the metrics declared here, each
``ray_<name>`` in Prometheus (docs/operations.md), recorded once per batch. Labels have few values: no
ids, no free text. The manifest has the exact counts: here, a batch repeated after a fault counts twice.
Ray has metrics of its own for tools and GPU memory. Only `Recorder` uses Ray.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.base.config import AnnotateConfig, MethodConfig
from pipeline.base.cost import ModelShape
from pipeline.base.hardware import peak_of_device
from pipeline.base.records import POSITION_NOT_SCORABLE, Annotation, Cost, reason_kind

logger = logging.getLogger(__name__)

MAX_REASONS = 40  # distinct reasons per process; further reasons are "other"
_MAX_REASON_LENGTH = 60
_TOOL = "tool: "


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


TEXTS = Metric("counter", "toolformer_texts", "Texts with a row, by status and reason", ("status", "reason"))
FUNNEL = Metric(
    "counter",
    "toolformer_funnel",
    "Texts selected, positions, draws, and calls that are candidates, executed, scored, kept at tau_f",
    ("tool", "stage"),
)
DISCARDED = Metric("counter", "toolformer_discarded", "Discarded draws and calls", ("tool", "reason"))
TOKENS = Metric(
    "counter", "toolformer_tokens", "Tokens through the model; tool is shared for L(empty)", ("tool", "phase")
)
PADDING = Metric("counter", "toolformer_padding_tokens", "Padding tokens through the model", ("phase",))
FLOPS = Metric("counter", "toolformer_flops", "Floating-point operations of the model")
BATCH_SECONDS = Metric(
    "histogram",
    "toolformer_batch_seconds",
    "From the arrival of a batch to its file; the batches of an actor overlap",
    boundaries=(0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800),
)
PEAK = Metric("gauge", "toolformer_peak_flops_per_s", "BF16 peak of the GPUs of an annotator, if known")
DONE = Metric("gauge", "toolformer_texts_done", "Texts with a row, those of earlier sessions included")
EXPECTED = Metric(
    "gauge",
    "toolformer_texts_expected",
    "Texts of the corpus; unread files are expected to have as many as the average read file",
)
METRICS = (TEXTS, FUNNEL, DISCARDED, TOKENS, PADDING, FLOPS, BATCH_SECONDS, PEAK, DONE, EXPECTED)

# A metric, the values of its labels, and the number to add, set or observe.
Sample = tuple[Metric, tuple[str, ...], float]


def batch_samples(annotations: Sequence[Annotation], method: MethodConfig, shape: ModelShape) -> list[Sample]:
    """The increments of the counters for a finished batch."""
    sums: Counter[tuple[Metric, tuple[str, ...]]] = Counter()
    run = Cost()
    for annotation in annotations:
        sums[TEXTS, (annotation.status, reason_class(annotation.reason or ""))] += 1
        for call in annotation.calls:
            sums[FUNNEL, (call.tool, "kept")] += call.gain >= method.of(call.tool).tau_f
        for stage in annotation.funnel:
            sums[FUNNEL, (stage.tool, "selected")] += not stage.selection.startswith("no: ")
            for name in ("positions", "draws", "candidates", "executed", "scored"):
                sums[FUNNEL, (stage.tool, name)] += getattr(stage, name)
            for reason, number in stage.discarded.items():
                if reason == POSITION_NOT_SCORABLE:  # no draw and no call
                    continue
                sums[DISCARDED, (stage.tool, reason_class(reason))] += number
        for item in annotation.work:
            sums[TOKENS, (item.tool or "shared", item.phase)] += item.run.tokens
            sums[PADDING, (item.phase,)] += item.run.padding
            run += item.run
    sums[FLOPS, ()] = shape.flops(run)
    return [(metric, values, float(number)) for (metric, values), number in sums.items()]


def reason_class(reason: str) -> str:
    """`reason_kind`, or "tool: KIND" for the reason of a tool; at most 60 characters."""
    prefix = _TOOL if reason.startswith(_TOOL) else ""
    return (prefix + reason_kind(reason.removeprefix(prefix)))[:_MAX_REASON_LENGTH]


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


class BatchMetrics:
    """The metrics of an annotating actor."""

    def __init__(self, config: AnnotateConfig, model: Any) -> None:
        """`model` is a transformers causal LM on its device."""
        self._method, self._shape = config.method, ModelShape.of(model)
        self._recorder = Recorder(str(config.output))
        if model.device.type == "cuda":
            import torch

            if peak := peak_of_device(torch.cuda.get_device_name(model.device)):
                self._recorder.record([(PEAK, (), config.ray.gpus_per_actor * peak)])

    def batch(self, annotations: Sequence[Annotation], seconds: float) -> None:
        """Record a batch whose rows are written."""
        samples = batch_samples(annotations, self._method, self._shape)
        self._recorder.record([*samples, (BATCH_SECONDS, (), seconds)])


def _ray_metric(metric: Metric) -> Any:
    from ray.util import metrics

    keys = ("run", *metric.labels)
    if metric.kind == "histogram":
        return metrics.Histogram(metric.name, metric.description, list(metric.boundaries), keys)
    ray_type = metrics.Counter if metric.kind == "counter" else metrics.Gauge
    return ray_type(metric.name, metric.description, keys)
