"""The section about an annotation: the same numbers as its manifest, also while a run is going on."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.fixtures import small_run
from pipeline.base.config import MergeConfig
from pipeline.base.cost import ModelShape
from pipeline.base.records import POSITION_NOT_SCORABLE, Annotation, Cost, Document, Funnel, PhaseWork, Text
from pipeline.report.html.annotation_section import annotation_section
from pipeline.report.html.data import AnnotationSection, Reason
from pipeline.storage.counts import ToolCounts
from pipeline.storage.manifest import AnnotationManifest, ManifestError, Session, read_manifest
from pipeline.storage.row_files import ROWS
from tests.pipeline.augmentation.test_merge import METHOD, annotations, call

pytestmark = pytest.mark.unit

SHAPE = ModelShape(parameters=1_000, layers=2, heads=2, head_size=4, hidden=8, vocabulary=16)


def row(text_id: int, *funnels: Funnel, reason: str | None = None) -> Annotation:
    """A text with two calls of QA, one of them kept; or one that was skipped or failed."""
    text = Text(text_id, Document(f"pages.jsonl#{text_id}"), "The nurse saw 18 of 40 patients.")
    if reason is not None:
        return Annotation(text, "failed" if reason.startswith("Value") else "skipped", reason)
    work = (
        PhaseWork("QA", "plus", Cost(tokens=10, logits=5), Cost(12, 3, 7, 5)),
        PhaseWork(None, "empty", Cost(tokens=4), Cost(tokens=4)),
    )
    calls = (call("QA", 4, 1.5), call("QA", 10, 0.5, l_call=None))
    return Annotation(text, "annotated", calls=calls, funnel=funnels, work=work)


def funnel(tool: str = "QA", selection: str = "every text", **discarded: int) -> Funnel:
    return Funnel(tool, selection, 3, 12, 5, 4, 2, discarded)


ROWS_OF_RUN = [
    row(1, funnel(wrong_tool=4), funnel("Calendar", "no: no URL")),
    row(2, Funnel("QA", "every text", 3, 12, 5, 4, 2, {"tool: no answer": 1, POSITION_NOT_SCORABLE: 1})),
    row(3, funnel(context=2), funnel("Calculator", "no: the price is secret: 3")),
    row(4, reason="short passage: fewer than 20 characters at pages.jsonl#4"),
    row(5, reason="ValueError: a number is wrong"),
]


def finished(folder: Path, **changes: object) -> Path:
    annotations(folder, ROWS_OF_RUN)
    manifest = read_manifest(folder)
    assert manifest.counts is not None
    session = Session(started="2026-11-28T13:00:00+00:00", wall_s=2.0)
    manifest = manifest.model_copy(update={"sessions": (session,)}).completed(manifest.counts, SHAPE)
    manifest.model_copy(update=changes).write(folder)
    return folder


def reasons(section: AnnotationSection) -> dict[tuple[str, str | None, str], Reason]:
    return {(reason.stage, reason.tool, reason.reason): reason for reason in section.reasons}


def test_the_funnel_is_that_of_the_manifest(tmp_path: Path) -> None:
    section = annotation_section(finished(tmp_path))
    assert (section.state, section.texts_done) == ("finished", 5)
    assert section.status == {"annotated": 3, "skipped": 1, "failed": 1}
    assert [tool.tool for tool in section.tools] == ["QA", "WikiSearch", "Calculator", "Calendar", "MT"]
    qa = section.tools[0]
    assert [(stage.name, stage.unit, stage.count) for stage in qa.stages] == [
        ("selected", "texts", 3),
        ("positions", "positions", 9),
        ("draws", "draws", 36),
        ("candidates", "calls", 15),
        ("executed", "calls", 12),
        ("scored", "calls", 6),
        ("kept", "calls", 3),
    ]
    assert {stage.name for stage in qa.stages} <= set(ToolCounts.model_fields)
    assert (qa.scored, qa.kept, qa.texts_kept, qa.gain_kept) == (6, 3, 3, 4.5)
    assert (qa.largest_gain, qa.largest_gain_is_bound) == (1.5, False)
    assert (qa.tau_f, qa.k) == (METHOD.of("QA").tau_f, METHOD.of("QA").k)
    assert (section.calls.number, section.calls.texts) == (6, 3)
    assert [len(section.contexts), len(section.texts)] == [6, 3]
    assert section.placements[0].places == {"between words": 3}
    assert not section.warnings


def test_every_reason_has_its_stage_its_unit_and_plain_words(tmp_path: Path) -> None:
    of = reasons(annotation_section(finished(tmp_path)))
    numbers = {key: (reason.count, reason.unit) for key, reason in of.items()}
    assert numbers == {
        ("skipped", None, "short passage"): (1, "texts"),
        ("failed", None, "ValueError"): (1, "texts"),
        ("discarded draw", "QA", "wrong_tool"): (4, "draws"),
        ("no result", "QA", "no answer"): (1, "calls"),
        ("not scored", "QA", POSITION_NOT_SCORABLE): (1, "positions"),
        ("not scored", "QA", "context"): (2, "calls"),
        ("not selected", "Calendar", "no URL"): (1, "texts"),
        ("not selected", "Calculator", "the price is secret"): (1, "texts"),
    }
    assert "--method.qa.given-name" in of["discarded draw", "QA", "wrong_tool"].advice
    assert of["not scored", "QA", "context"].meaning != of["discarded draw", "QA", "wrong_tool"].meaning
    assert all(reason.meaning.endswith(".") for reason in of.values())


def test_flops_are_those_of_the_cost_model(tmp_path: Path) -> None:
    section = annotation_section(finished(tmp_path))
    plus, empty = section.costs
    assert (plus.tool, plus.phase, plus.tokens, plus.padding) == ("QA", "plus", 36, 9)
    assert plus.lower_bound_tokens == 30
    assert plus.flops == section.tools[0].flops == SHAPE.flops(Cost(36, 9, 21, 15))
    assert plus.lower_bound_flops == SHAPE.flops(Cost(tokens=30, logits=15))
    assert (empty.tool, empty.flops) == (None, SHAPE.flops(Cost(tokens=12)))
    assert section.tools[1].flops is None
    assert section.flops_per_s == pytest.approx((plus.flops + SHAPE.flops(Cost(tokens=12))) / 2, rel=1e-3)
    assert [(item.started, item.wall_s) for item in section.sessions] == [("2026-11-28T13:00:00+00:00", 2.0)]


def test_an_unfinished_run_is_counted_as_at_its_end(tmp_path: Path) -> None:
    whole = annotation_section(finished(tmp_path))
    read_manifest(tmp_path).reopened().write(tmp_path)
    (tmp_path / ROWS / "2.parquet").write_bytes(b"PAR1 being written")
    section = annotation_section(tmp_path)
    assert section.state == "unfinished"
    assert "not finished" in section.warnings[0]
    assert "2.parquet" in section.warnings[1]
    assert section.status == whole.status
    assert section.reasons == whole.reasons
    assert section.calls == whole.calls
    assert section.contexts == whole.contexts
    assert [tool.stages for tool in section.tools] == [tool.stages for tool in whole.tools]
    assert section.tools[0].flops is None
    assert [cost.tokens for cost in section.costs] == [cost.tokens for cost in whole.costs]


def test_a_run_that_has_just_begun_has_no_rows(tmp_path: Path) -> None:
    finished(tmp_path)
    read_manifest(tmp_path).reopened().write(tmp_path)
    for path in (tmp_path / ROWS).iterdir():
        path.unlink()
    section = annotation_section(tmp_path)
    assert (section.texts_done, section.calls.number, section.contexts) == (0, 0, ())


def test_rows_that_are_missing_from_a_finished_run_are_a_warning(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / ROWS / "1.parquet").unlink()
    assert "has 3 rows" in annotation_section(tmp_path).warnings[0]


def test_the_settings_of_the_merge_are_those_of_the_columns(tmp_path: Path) -> None:
    merge = MergeConfig(annotations=(tmp_path, tmp_path), max_examples=2, one_call_per_position=True, seed=1)
    section = annotation_section(finished(tmp_path), merge)
    assert (section.calls.max_examples, section.calls.one_call_per_position) == (2, True)
    assert section.calls.seed == "1"
    assert "2 annotations together" in section.warnings[0]


def test_a_folder_without_annotations_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="not a folder that annotate wrote"):
        annotation_section(tmp_path)


def test_a_real_run_adds_up(tmp_path: Path) -> None:
    small_run.write_world(tmp_path, pages=12)
    manifest: AnnotationManifest = small_run.finished(tmp_path, tmp_path / "annotations")
    section = annotation_section(tmp_path / "annotations")
    assert manifest.counts is not None
    assert manifest.compute is not None
    assert sum(cost.flops or 0 for cost in section.costs) == manifest.compute.flops
    for tool in section.tools:
        stages = {stage.name: stage.count for stage in tool.stages}
        discarded = [reason for reason in section.reasons if reason.tool == tool.tool]
        by_unit = {unit: sum(r.count for r in discarded if r.unit == unit) for unit in ("draws", "calls")}
        assert by_unit["calls"] == stages["candidates"] - stages["scored"]
        assert by_unit["draws"] <= stages["draws"] - stages["candidates"]
    assert section.model_validate_json(section.model_dump_json()) == section
