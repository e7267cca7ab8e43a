"""The page of the metrics for Prometheus."""

from __future__ import annotations

from pipeline.annotation.metrics import METRICS as ANNOTATION_METRICS
from pipeline.finetuning.watching.metrics import METRICS as TRAINING_METRICS
from reference.markdown import code, prose, table


def page() -> str:
    """Every metric that a run adds to those of Ray, with the names in Prometheus."""
    rows = (
        (
            "<br>".join(code(name) for name in metric.exported),
            metric.kind,
            " ".join(code(label) for label in ("run", *metric.labels)),
            prose(metric.description),
        )
        for metric in (*ANNOTATION_METRICS, *TRAINING_METRICS)
    )
    return f"{_INTRODUCTION}\n{table(('name in Prometheus', 'kind', 'labels', 'meaning'), rows)}\n{_REST}"


_INTRODUCTION = """# Metrics

`annotate` and, with `training` in their names, `finetune` add these metrics to those of Ray, on the metrics
endpoint of each node ([Watching a run](../operations.md#watching-a-run)). The label `run` is the output
folder.
"""
_REST = """Latency, queue and replicas of the tools are Ray Serve's metrics (`ray_serve_…`, label
`deployment`). GPU memory is Ray's own. Fine-tuning has all values in
[`metrics.jsonl`](output_fields.md#finetune-metricsjsonl).
"""
