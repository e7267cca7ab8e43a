"""What a batch adds to the counters; labels with few values."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.fixtures import small_run as annotating
from pipeline.annotation.metrics import (
    ANNOTATOR_SECONDS,
    BATCH_SECONDS,
    DISCARDED,
    FLOPS,
    FUNNEL,
    METRICS,
    PADDING,
    TEXTS,
    TOKENS,
    BatchMetrics,
    batch_samples,
    reason_class,
)
from pipeline.base.cost import ModelShape
from pipeline.base.records import Annotation, Cost, Document, Text
from pipeline.method.utilization import UtilizationClock
from pipeline.runtime.metrics import Recorder, Sample
from pipeline.storage.counts import count_rows

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> list[Annotation]:
    """Of a small world's texts, one of them unreadable and one failed."""
    folder = tmp_path_factory.mktemp("world")
    annotating.write_prompts(folder / "prompts")
    annotator = annotating.local_annotator(folder / "prompts")
    texts = annotating.texts(6)
    skipped = Text(1, Document("pages.jsonl#9"), "", skipped="not JSON: at column 7")
    failed = Annotation(Text(2, Document("pages.jsonl#10"), "x"), "failed", "ValueError: 3.14 of 2")
    return [*annotator.annotate([*texts, skipped]), failed]


def test_counters_are_what_the_manifest_will_count(annotations: list[Annotation]) -> None:
    method = annotating.method(Path("unused"))
    shape = ModelShape.of(annotating.annotator_model().model)
    found = {(metric, labels): number for metric, labels, number in batch_samples(annotations, method, shape)}
    counts = count_rows([one.to_row() for one in annotations], method)
    texts = {labels: number for (metric, labels), number in found.items() if metric == TEXTS}
    assert texts == {
        ("annotated", ""): counts.status["annotated"],
        **({("no_calls", ""): counts.status["no_calls"]} if "no_calls" in counts.status else {}),
        ("skipped", "not JSON"): 1,
        ("failed", "ValueError"): 1,
    }
    for tool, wanted in counts.tools.items():
        for stage in ("selected", "positions", "draws", "candidates", "executed", "scored", "kept"):
            assert found.get((FUNNEL, (tool, stage)), 0) == getattr(wanted, stage), (tool, stage)
        assert sum(found[DISCARDED, (tool, reason_class(reason))] for reason in wanted.discarded) == sum(
            wanted.discarded.values()
        )
    assert counts.tools["Calculator"].executed > 0
    assert sum(number for (metric, _), number in found.items() if metric == TOKENS) == counts.token_forwards
    run = sum((part.run for part in counts.work), Cost())
    assert sum(number for (metric, _), number in found.items() if metric == PADDING) == run.padding
    assert found[FLOPS, ()] == shape.flops(run)


def test_every_sample_has_the_labels_of_its_metric(annotations: list[Annotation]) -> None:
    method = annotating.method(Path("unused"))
    samples = batch_samples(annotations, method, ModelShape.of(annotating.annotator_model().model))
    assert all(len(labels) == len(metric.labels) for metric, labels, _ in samples)
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_a_batch_is_recorded_at_once_with_the_time_since_the_last_one(
    tmp_path: Path, annotations: list[Annotation], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[list[Sample]] = []
    monkeypatch.setattr(Recorder, "record", lambda _, samples: recorded.append(list(samples)))
    now = 0.0
    utilization = UtilizationClock(lambda: now)
    model = annotating.annotator_model().model
    metrics = BatchMetrics(annotating.config(tmp_path, tmp_path / "out"), model, utilization)
    with utilization.phase("model"):
        now += 3
    now += 2
    metrics.batch(annotations, 7.0)
    [samples] = recorded
    states = {labels: number for metric, labels, number in samples if metric == ANNOTATOR_SECONDS}
    assert states == {("model",): 3, ("tools",): 0, ("other",): 0, ("texts",): 2}
    assert [number for metric, _, number in samples if metric == BATCH_SECONDS] == [7.0]


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("", ""),
        ("tool: deadline", "tool: deadline"),
        ("tool: no such day: 31 February", "tool: no such day"),
        ("ValueError: the tool: 3", "ValueError"),
        ("unclosed", "unclosed"),
        ("x" * 500, "x" * 60),
    ],
)
def test_reasons_are_cut_to_their_class(reason: str, kind: str) -> None:
    assert reason_class(reason) == kind
