"""The section of a report about an annotation (paper section 2). In: its folder, which may still grow.

Rows are streamed once. Counts of a finished run are those of its manifest; those of an unfinished run are
counted from the rows on disk, as the run does at its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.base.config import MergeConfig
from pipeline.base.records import POSITION_NOT_SCORABLE
from pipeline.report.html.calls_in_context import ContextCalls
from pipeline.report.html.costs import flops_by_tool, phase_costs
from pipeline.report.html.data import AnnotationSection, Fact, Reason, Session, Stage, ToolFunnel
from pipeline.report.html.placements import Placements
from pipeline.report.html.row_reader import RowReader
from pipeline.report.html.scored_calls import CallBatch, CallSample, mergeable_calls
from pipeline.report.losses import annotation_losses
from pipeline.report.reasons import NOT_SCORED, ReasonStage, explain
from pipeline.storage.counts import COLUMNS, Counts, ToolCounts, count_rows
from pipeline.storage.manifest import AnnotationManifest, missing_rows, read_manifest
from tools_service.contract.declarations import in_order

_COLUMNS = ("text_id", "document", "text", "calls")
_STAGES = ("positions", "draws", "candidates", "executed", "scored", "kept")
_NO, _TOOL = "no: ", "tool: "


def annotation_section(folder: Path, merge: MergeConfig | None = None) -> AnnotationSection:
    """Read the annotation in `folder`; with the choices of `merge`, else with its default settings.

    Raises ManifestError if there is no annotation.
    """
    manifest = read_manifest(folder)
    counts, method = manifest.counts, manifest.config.method
    unfinished = manifest.state == "unfinished" or counts is None
    reader = RowReader(folder, unfinished=unfinished)
    if unfinished or counts is None:
        counts = count_rows(reader.rows(COLUMNS), method)
        manifest = manifest.model_copy(update={"counts": counts})
    tools = in_order(method.tools)
    tau_f = {tool: method.of(tool).tau_f for tool in tools}
    sample, contexts, placements = CallSample(), ContextCalls(tools, tau_f), Placements(tools, tau_f)
    gain_kept = np.zeros(len(tools))
    for rows in reader.batches(_COLUMNS):
        calls = mergeable_calls(rows, tools, method.input_rule)
        gain_kept += _gain_kept(calls, [tau_f[tool] for tool in tools])
        sample.add(calls)
        contexts.add(rows, calls)
        placements.add(rows, calls)
    shape = manifest.compute.shape if manifest.compute else None
    flops = flops_by_tool(counts, shape)
    texts, calls_in_context = contexts.contexts()
    return AnnotationSection(
        folder=str(folder),
        state="unfinished" if unfinished else "finished",
        facts=tuple(_facts(manifest, counts)),
        texts_done=counts.texts,
        status=counts.status,
        tools=tuple(
            _funnel(manifest, tool, counts.tools[tool], flops.get(tool), float(gain))
            for tool, gain in zip(tools, gain_kept, strict=True)
        ),
        reasons=tuple(_reasons(counts)),
        losses=tuple(annotation_losses(manifest)),
        calls=sample.scored_calls(tools, merge or MergeConfig()),
        texts=texts,
        contexts=calls_in_context,
        placements=placements.placements(),
        costs=phase_costs(counts, shape),
        sessions=tuple(Session(started=item.started, wall_s=item.wall_s) for item in manifest.sessions),
        flops_per_s=manifest.compute.flops_per_s if manifest.compute else None,
        warnings=tuple(_warnings(folder, manifest, reader, merge, unfinished)),
    )


def _gain_kept(calls: CallBatch, tau_f: list[float]) -> np.ndarray:
    """Sum of the gains of kept calls, by tool."""
    kept = calls.gain >= np.array(tau_f)[calls.tool]
    return np.bincount(calls.tool[kept], weights=calls.gain[kept], minlength=len(tau_f))


def _funnel(
    manifest: AnnotationManifest, tool: str, counts: ToolCounts, flops: float | None, gain: float
) -> ToolFunnel:
    method = manifest.config.method.of(tool)
    stages = [Stage(name="selected", unit="texts", count=counts.selected)]
    units = {"positions": "positions", "draws": "draws"}
    stages += [
        Stage.model_validate({"name": name, "unit": units.get(name, "calls"), "count": getattr(counts, name)})
        for name in _STAGES
    ]
    return ToolFunnel(
        tool=tool,
        tau_s=method.tau_s,
        k=method.k,
        m=method.m,
        tau_f=method.tau_f,
        stages=tuple(stages),
        scored=counts.scored,
        kept=counts.kept,
        texts_kept=counts.texts_kept,
        flops=flops,
        gain_kept=gain,
        largest_gain=counts.largest_gain,
        largest_gain_is_bound=counts.largest_gain_is_bound,
    )


def _reasons(counts: Counts) -> Iterator[Reason]:
    for status in ("skipped", "failed"):
        for reason, number in counts.reasons.get(status, {}).items():
            yield _reason(status, None, reason, number, "texts")
    for tool, sums in counts.tools.items():
        for rule, number in sums.selection.items():
            if rule.startswith(_NO):
                yield _reason("not selected", tool, rule.removeprefix(_NO), number, "texts")
        if sums.positions_not_scorable:
            yield _reason("not scored", tool, POSITION_NOT_SCORABLE, sums.positions_not_scorable, "positions")
        for reason, number in sums.discarded.items():
            if reason == POSITION_NOT_SCORABLE:  # of an earlier version
                yield _reason("not scored", tool, reason, number, "positions")
            elif reason.startswith(_TOOL):
                yield _reason("no result", tool, reason.removeprefix(_TOOL), number, "calls")
            elif reason in NOT_SCORED:
                yield _reason("not scored", tool, reason, number, "calls")
            else:
                yield _reason("discarded draw", tool, reason, number, "draws")


def _reason(stage: ReasonStage, tool: str | None, reason: str, count: int, unit: str) -> Reason:
    explanation = explain(stage, reason, tool)
    fields = {"stage": stage, "tool": tool, "reason": reason, "count": count, "unit": unit}
    return Reason.model_validate({**fields, "meaning": explanation.meaning, "advice": explanation.advice})


def _facts(manifest: AnnotationManifest, counts: Counts) -> Iterator[Fact]:
    config, corpus = manifest.config, manifest.corpus
    yield Fact(name="model", value=f"{config.model.path} ({config.model.dtype}, {config.model.device})")
    size = "" if corpus.bytes is None else f", {corpus.bytes:,} bytes"
    files = f"{corpus.files:,} file{'s' * (corpus.files != 1)}{size}"
    yield Fact(name="corpus", value=f"{' '.join(map(str, config.corpus.paths))} ({files})")
    if config.corpus.slice:
        yield Fact(name="slice", value=config.corpus.slice)
    yield Fact(name="texts", value=f"{counts.texts:,}")
    yield Fact(name="scored calls", value=f"{counts.calls:,}")
    prompts = str(config.method.prompts or "those of this package")
    yield Fact(name="prompts", value=prompts if config.method.use_prompts else "none")
    yield Fact(name="seed", value=str(config.method.seed))
    yield Fact(name="tokens through the model", value=f"{counts.token_forwards:,}")
    if manifest.compute:
        yield Fact(name="tokens per token of the lower bound", value=f"{manifest.compute.overhead:.4g}")
    if version := manifest.versions.get("toolformer-on-ray"):
        yield Fact(name="version", value=version)


def _warnings(
    folder: Path,
    manifest: AnnotationManifest,
    reader: RowReader,
    merge: MergeConfig | None,
    unfinished: bool,
) -> Iterator[str]:
    if unfinished:
        yield "This run is not finished: the counts are those of the rows on disk so far."
    elif problem := missing_rows(folder, manifest):
        yield f"{problem}."
    yield from reader.problems
    if merge is not None and len(merge.annotations) > 1:
        yield (
            f"merge read {len(merge.annotations)} annotations together; the counts at a threshold are those "
            "of this one alone."
        )
