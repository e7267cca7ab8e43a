"""What a run of annotate shows while it runs: counters, gauges and a histogram in Ray's metrics endpoint.

In: the finished annotations of a batch, and the tally's progress. Out: the metrics declared here, each
``ray_<name>`` to Prometheus (cluster/monitoring has the dashboard; docs/operations.md says how to watch).
One call a batch. Labels have few values: no ids, no free text. What tools do while they are asked is in
Ray Serve's own metrics, GPU memory in Ray's. Exact counts are the manifest's: a batch that is repeated
after a fault is counted twice here. Ray is touched in `Recorder` only.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.base.config import AnnotateConfig, MethodConfig
from pipeline.base.cost import ModelShape
from pipeline.base.hardware import peak_of_device
from pipeline.base.records import Annotation, Cost, reason_kind

logger = logging.getLogger(__name__)

MAX_REASONS = 40
"""Different reasons a process tells apart; further ones are "other"."""
_LONGEST_REASON = 60


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as Ray gets it; every one also has the label `run`, the output folder."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    description: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()

    @property
    def exported(self) -> tuple[str, ...]:
        """The names that Prometheus sees."""
        endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
        return tuple(f"ray_{self.name}{ending}" for ending in endings[self.kind])


TEXTS = Metric(
    "counter", "toolformer_texts", "Texts with a row, by status and kind of reason", ("status", "reason")
)
FUNNEL = Metric(
    "counter",
    "toolformer_funnel",
    "Texts selected, positions, draws, and calls that are candidates, executed, scored, kept at tau_f",
    ("tool", "stage"),
)
DISCARDED = Metric(
    "counter", "toolformer_discarded", "Draws and calls that fell out, by reason", ("tool", "reason")
)
TOKENS = Metric(
    "counter", "toolformer_tokens", "Tokens through the model; tool is shared for L(empty)", ("tool", "phase")
)
PADDING = Metric("counter", "toolformer_padding_tokens", "Padding that went along with them", ("phase",))
FLOPS = Metric("counter", "toolformer_flops", "Floating-point operations of the model")
BATCH_SECONDS = Metric(
    "histogram",
    "toolformer_batch_seconds",
    "From a batch's arrival to its file; batches of one actor overlap",
    boundaries=(0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800),
)
PEAK = Metric("gauge", "toolformer_peak_flops_per_s", "BF16 peak of the GPUs of an annotator, if it is known")
DONE = Metric("gauge", "toolformer_texts_done", "Texts with a row, those of earlier sessions included")
EXPECTED = Metric(
    "gauge",
    "toolformer_texts_expected",
    "Texts of the corpus; until it is read, its other files are taken to have as many as those that are",
)
METRICS = (TEXTS, FUNNEL, DISCARDED, TOKENS, PADDING, FLOPS, BATCH_SECONDS, PEAK, DONE, EXPECTED)

Sample = tuple[Metric, tuple[str, ...], float]
"""A metric, the values of its labels, and what to add, to set or to observe."""


def of_batch(annotations: Sequence[Annotation], method: MethodConfig, shape: ModelShape) -> list[Sample]:
    """What a finished batch adds to the counters."""
    sums: Counter[tuple[Metric, tuple[str, ...]]] = Counter()
    run = Cost()
    for one in annotations:
        sums[TEXTS, (one.status, reason_class(one.reason or ""))] += 1
        for call in one.calls:
            sums[FUNNEL, (call.tool, "kept")] += call.gain >= method.of(call.tool).tau_f
        for stage in one.funnel:
            sums[FUNNEL, (stage.tool, "selected")] += not stage.selection.startswith("no: ")
            for name in ("positions", "draws", "candidates", "executed", "scored"):
                sums[FUNNEL, (stage.tool, name)] += getattr(stage, name)
            for reason, number in stage.discarded.items():
                sums[DISCARDED, (stage.tool, reason_class(reason))] += number
        for part in one.work:
            sums[TOKENS, (part.tool or "shared", part.phase)] += part.run.tokens
            sums[PADDING, (part.phase,)] += part.run.padding
            run += part.run
    sums[FLOPS, ()] = shape.flops(run)
    return [(metric, values, float(number)) for (metric, values), number in sums.items()]


def reason_class(reason: str) -> str:
    """The part of a reason to count by: `reason_kind`, with the tools' own kept apart."""
    whose, _, tools_own = reason.partition("tool: ")
    kind = reason_kind(reason) if whose or not tools_own else f"tool: {reason_kind(tools_own)}"
    return kind[:_LONGEST_REASON]


class Recorder:
    """Records samples in this process's Ray metrics. Outside Ray it does nothing, and it never raises."""

    def __init__(self, run: str) -> None:
        """`run` is the output folder."""
        self._run = run
        self._made: dict[str, Any] = {}
        self._reasons: set[str] = set()
        self._broken = False

    def record(self, samples: Iterable[Sample]) -> None:
        """Add to counters, set gauges, observe in histograms."""
        import ray

        if self._broken or not ray.is_initialized():
            return
        try:
            for sample in samples:
                self._one(*sample)
        except Exception:  # whatever is wrong with metrics, the run is not
            self._broken = True
            logger.warning("metrics cannot be recorded, going on without", exc_info=True)

    def _one(self, metric: Metric, values: tuple[str, ...], number: float) -> None:
        labels = {"run": self._run} | self._bounded(dict(zip(metric.labels, values, strict=True)))
        made = self._made.get(metric.name) or self._made.setdefault(metric.name, _make(metric))
        if metric.kind == "gauge":
            made.set(number, labels)
        elif metric.kind == "histogram":
            made.observe(number, labels)
        elif number > 0:  # Ray refuses to add nothing
            made.inc(number, labels)

    def _bounded(self, labels: Mapping[str, str]) -> dict[str, str]:
        reason = labels.get("reason")
        if reason is None or reason in self._reasons:
            return dict(labels)
        if len(self._reasons) >= MAX_REASONS:
            return {**labels, "reason": "other"}
        self._reasons.add(reason)
        return dict(labels)


class BatchMetrics:
    """What an annotator records."""

    def __init__(self, config: AnnotateConfig, model: Any) -> None:
        """`model` is a transformers causal LM, where it runs."""
        self._method, self._shape = config.method, ModelShape.of(model)
        self._recorder = Recorder(str(config.output))
        if model.device.type == "cuda":
            import torch

            if peak := peak_of_device(torch.cuda.get_device_name(model.device)):
                self._recorder.record([(PEAK, (), config.ray.gpus_per_actor * peak)])

    def batch(self, annotations: Sequence[Annotation], seconds: float) -> None:
        """A batch whose rows are written."""
        self._recorder.record(
            [*of_batch(annotations, self._method, self._shape), (BATCH_SECONDS, (), seconds)]
        )


def _make(metric: Metric) -> Any:
    from ray.util import metrics

    keys = ("run", *metric.labels)
    if metric.kind == "histogram":
        return metrics.Histogram(metric.name, metric.description, list(metric.boundaries), keys)
    return {"counter": metrics.Counter, "gauge": metrics.Gauge}[metric.kind](
        metric.name, metric.description, keys
    )
