"""Measure the `Assumptions` of a plan in a finished run.

In: a folder that annotate wrote; the tokenizer of its model must be available. Out: averages over the first
texts of the run, and what the engine ran, relative to the work estimated for those texts from those averages.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.base.config import AnnotateConfig
from pipeline.base.records import ANNOTATION_SCHEMA, Annotation, Call, Cost, Phase
from pipeline.planning.assumptions import DEMO, Assumptions, Overhead, ToolStatistics
from pipeline.planning.expected_work import LOSS_TOKENS, PromptSizes, TextCounts, estimate_work
from pipeline.storage.manifest import AnnotationManifest, ManifestError, read_finished
from pipeline.storage.row_files import ROWS, parquet_files, read_file_batches, read_rows
from pipeline.syntax.tokenizer import TokenizedText, load_tokenizer, tokenize_continuations
from tools_service.syntax.calls import linearise

_MAX_TEXTS = 5_000  # more would not make an average more exact
_SCALE = 1_000  # estimates are whole tokens, and one text may take less than half a token
_CLOCK_S = 60  # tolerated difference between the clocks of the file system and of the driver


def assumptions_from_run(folder: Path) -> Assumptions:
    """Raises ManifestError if `folder` is no finished run, or if no text of it went through the model."""
    manifest = read_finished(folder)
    config, method = manifest.config, manifest.config.method
    tokenizer = load_tokenizer(config.model.path)
    rows = (row for row in read_rows(folder, ANNOTATION_SCHEMA.names) if row["work"])
    annotations = [Annotation.from_row(row) for row in islice(rows, _MAX_TEXTS)]
    if not annotations:
        raise ManifestError(f"{folder}: no text of this run went through the model")
    tokenized = tokenize_continuations(tokenizer, [" " + row.text.text for row in annotations])
    tools = {tool: _statistics(tool, config, annotations, tokenized) for tool in method.tools}
    measured = {"source": str(folder), "tools": tools, "overheads": {}}
    assumptions = DEMO.model_copy(update=measured | _row_size(folder) | _throughput(folder, manifest))

    # What the engine adds: its work for these texts, relative to the estimate without overhead.
    run: defaultdict[Phase, Cost] = defaultdict(Cost)
    estimate: defaultdict[Phase, Cost] = defaultdict(Cost)
    texts: TextCounts = Counter()
    for annotation, text in zip(annotations, tokenized, strict=True):
        for part in annotation.work:
            run[part.phase] += part.run
        worked = {part.tool for part in annotation.work}
        texts[len(text.ids), tuple(tool for tool in method.tools if tool in worked)] += 1
    sizes = PromptSizes.of(tokenizer, method)
    for (_, phase), cost in estimate_work(texts, _SCALE, sizes, method, assumptions).items():
        estimate[phase] += cost
    overheads = {phase: _overhead(run[phase], cost) for phase, cost in estimate.items() if cost.tokens}
    return assumptions.model_copy(update={"overheads": overheads})


def _overhead(run: Cost, estimate: Cost) -> Overhead:
    """`estimate` is for _SCALE times the texts of `run`."""
    return Overhead(
        tokens=round(_SCALE * run.tokens / estimate.tokens, 4),
        padding=round(run.padding / max(1, run.tokens), 4),
        attention_pairs=round(_SCALE * run.attention_pairs / max(1, estimate.attention_pairs), 4),
    )


def _statistics(
    tool: str, config: AnnotateConfig, annotations: list[Annotation], tokenized: list[TokenizedText]
) -> ToolStatistics:
    """Averages of one tool; all are 0 where nothing was drawn or scored."""
    settings, tokenizer = config.method.of(tool), load_tokenizer(config.model.path)
    work = [part for annotation in annotations for part in annotation.work if part.tool == tool]
    decoded = [part.run.tokens for part in work if part.phase == "decode"]
    funnels = [stage for annotation in annotations for stage in annotation.funnel if stage.tool == tool]
    positions = sum(stage.positions for stage in funnels)
    groups: defaultdict[tuple[int, str, str], list[Call]] = defaultdict(list)  # by text, c and r
    for number, annotation in enumerate(annotations):
        for call in annotation.calls:
            if call.tool == tool:
                groups[number, call.input, call.result].append(call)
    kept = {group[0] for group, calls in groups.items() if max(c.gain for c in calls) >= settings.tau_f}

    plus = tokenize_continuations(tokenizer, [linearise(tool, *pair) for _, *pair in groups])
    call_only = tokenize_continuations(tokenizer, [linearise(tool, argument) for _, argument, _ in groups])
    last_position, targets = 0.0, 0
    for (number, *_), calls in groups.items():
        n, tokens = len(tokenized[number].ids), _token_indices(tokenized[number], calls)
        last_position += max(tokens) / n
        targets += len({token + t for token in tokens for t in range(LOSS_TOKENS)} & set(range(n)))
    needs_call = sum(any(call.l_call is not None for call in calls) for calls in groups.values())

    texts, draws = max(1, len(decoded)), max(1, sum(stage.draws for stage in funnels))
    scored = max(1, len(groups))
    return ToolStatistics(
        positions=min(1.0, round(positions / (texts * settings.k), 4)),
        draw=round(max(0, sum(decoded) - positions) / draws, 4),
        candidates=round(sum(stage.candidates for stage in funnels) / draws, 4),
        scored=round(len(groups) / draws, 4),
        plus=round(sum(len(prefix.ids) for prefix in plus) / scored, 2),
        call=round(sum(len(prefix.ids) for prefix in call_only) / scored, 2),
        last_position=min(1.0, round(last_position / scored, 4)),
        targets=round(targets / scored, 3),
        needs_call=round(needs_call / scored, 4),
        texts_kept=round(len(kept) / texts, 4),
    )


def _token_indices(text: TokenizedText, calls: Sequence[Call]) -> list[int]:
    """The token of `text` before which each call stands; the tokenized text has a space in front."""
    begins = np.flatnonzero(text.starts >= 0)
    positions = np.array([call.position for call in calls])
    nearest = np.searchsorted(text.starts[begins] - 1, positions, side="right") - 1
    tokens: list[int] = np.where(positions > 0, begins[nearest], 0).tolist()
    return tokens


def _row_size(folder: Path) -> dict[str, float]:
    texts = characters = text_bytes = all_bytes = 0
    for path in parquet_files(folder / ROWS):
        metadata = pq.read_metadata(path)
        column = metadata.schema.names.index("text")
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        text_bytes += sum(group.column(column).total_compressed_size for group in groups)
        all_bytes += path.stat().st_size
        texts += metadata.num_rows
        characters += pc.sum(pc.utf8_length(pq.read_table(path, columns=["text"])["text"])).as_py() or 0
    return {
        "bytes_per_character": round(text_bytes / max(1, characters), 3),
        "bytes_per_text": round((all_bytes - text_bytes) / max(1, texts), 1),
    }


def _throughput(folder: Path, manifest: AnnotationManifest) -> dict[str, float]:
    """start_s, which ends with the first batch of each actor, and throughput, after that.

    The times of the files show them only if one session wrote all files, each actor wrote several, and the
    files are not copies; nothing otherwise.
    """
    compute, sessions, actors = manifest.compute, manifest.sessions, manifest.config.ray.actors
    files = sorted((path.stat().st_mtime, path) for path in parquet_files(folder / ROWS))
    elastic = manifest.config.ray.max_actors is not None  # the number of actors is not known
    if compute is None or elastic or len(sessions) != 1 or len(files) < 3 * actors:
        return {}
    [session] = sessions
    if session.finished is None or session.wall_s is None:
        return {}
    begin, end = (datetime.fromisoformat(time).timestamp() for time in (session.started, session.finished))
    first, last = files[actors - 1][0], files[-1][0]
    if not begin - _CLOCK_S < first < last < end + _CLOCK_S:
        return {}
    batches = (batch for _, path in files[:actors] for batch in read_file_batches(path, ["work"]))
    work = (part for batch in batches for row in batch.to_pylist() for part in row["work"])
    start_work = sum((Cost(**part["run"]) for part in work), Cost())
    flops_per_s = (compute.flops - compute.shape.flops(start_work)) / (last - first)
    start_s = max(0.0, session.wall_s - compute.flops / flops_per_s)
    return {"start_s": round(start_s, 1), "throughput": float(f"{flops_per_s / actors:.4g}")}
