"""The metrics of a run of annotate: counters, gauges and a histogram on Ray's metrics endpoint.

In: the annotations of a finished batch, and the progress of the run. Out: the metrics declared here, each
``ray_<name>`` in Prometheus (docs/operations.md), recorded once per batch. Labels have few values: no
ids, no free text. The manifest has the exact counts: here, a batch repeated after a fault counts twice.
Ray has metrics of its own for tools and GPU memory. runtime/metrics.py records them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.base.config import AnnotateConfig, MethodConfig
from pipeline.base.cost import ModelShape
from pipeline.base.hardware import peak_of_device
from pipeline.base.records import POSITION_NOT_SCORABLE, Annotation, Cost, reason_kind
from pipeline.method.utilization import UtilizationClock
from pipeline.runtime.metrics import Metric, Recorder, Sample

_MAX_REASON_LENGTH = 60
_TOOL = "tool: "


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
ANNOTATOR_SECONDS = Metric(
    "counter",
    "toolformer_annotator_seconds",
    "Time of annotators by state: model, waiting for tools or for texts, other (method/utilization.py)",
    ("state",),
)
PEAK = Metric("gauge", "toolformer_peak_flops_per_s", "BF16 peak of the GPUs of an annotator, if known")
DONE = Metric("gauge", "toolformer_texts_done", "Texts with a row, those of earlier sessions included")
EXPECTED = Metric(
    "gauge",
    "toolformer_texts_expected",
    "Texts of the corpus; unread files are expected to have as many as the average read file",
)
FAILURE_BUDGET_USED = Metric(
    "gauge", "toolformer_failure_budget_used", "Failed texts over those that max_failed_share allows: 1 stops"
)
STALLED = Metric("gauge", "toolformer_stalled", "1 while the run stalls for this reason", ("reason",))
_OF_BATCHES = (TEXTS, FUNNEL, DISCARDED, TOKENS, PADDING, FLOPS, BATCH_SECONDS, ANNOTATOR_SECONDS, PEAK)
METRICS = (*_OF_BATCHES, DONE, EXPECTED, FAILURE_BUDGET_USED, STALLED)


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


class BatchMetrics:
    """The metrics of an annotating actor."""

    def __init__(self, config: AnnotateConfig, model: Any, utilization: UtilizationClock) -> None:
        """`model` is a transformers causal LM on its device, `utilization` its annotator's."""
        self._method, self._shape, self._utilization = config.method, ModelShape.of(model), utilization
        self._recorder = Recorder(str(config.output))
        if model.device.type == "cuda":
            import torch

            if peak := peak_of_device(torch.cuda.get_device_name(model.device)):
                self._recorder.record([(PEAK, (), config.ray.gpus_per_actor * peak)])

    def batch(self, annotations: Sequence[Annotation], seconds: float) -> None:
        """Record a batch whose rows are written."""
        samples = batch_samples(annotations, self._method, self._shape)
        states = self._utilization.take().items()
        samples += [(ANNOTATOR_SECONDS, (state,), state_seconds) for state, state_seconds in states]
        self._recorder.record([*samples, (BATCH_SECONDS, (), seconds)])
