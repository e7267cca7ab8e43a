"""Assumptions from a finished run: what its texts brought under each tool, and what the engine added.

In: a folder that annotate wrote. Out: `Assumptions`, in the tokens of that run's model, whose tokenizer must
be at hand. Rows are streamed, the first thousands looked at; what is foreseen for the same texts from their
own averages is then held against what was run for them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.base.config import MethodConfig
from pipeline.base.records import Cost, Phase
from pipeline.planning.assumptions import DEMO, Assumptions, Habit, Overhead, Pace, Size
from pipeline.planning.expected_work import WINDOW, Costs, Sizes, foresee
from pipeline.storage.manifest import AnnotationManifest, ManifestError, read_manifest
from pipeline.storage.row_files import ROWS, parquet_files, read_file_batches, read_rows
from pipeline.syntax.calls import linearise
from pipeline.syntax.tokenizer import TokenizedText, load_tokenizer, tokenize_continuations
from tools_service.tools.contract import ToolName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COLUMNS = ("text", "calls", "funnel", "work")
_MOST_TEXTS = 5_000  # more would sharpen no average
_FINE = 1_000  # forecasts are in whole tokens, and a text may bring less than half of one
_CLOCK_S = 60  # clocks of a shared file system and of the driver may differ by this


@dataclass(slots=True)
class _Seen:
    """One tool's sums over the texts it was selected for."""

    totals: Counter[str] = field(default_factory=Counter)
    reach: float = 0.0

    def habit(self, k: int) -> Habit:
        """The averages; nothing drawn or scored is nothing assumed."""
        total = self.totals
        draws, scored, texts = (max(1, total[name]) for name in ("draws", "scored", "texts"))
        return Habit(
            fill=min(1.0, round(total["positions"] / (texts * k), 4)),
            step=round(total["drawn"] / draws, 4),
            candidates=round(total["candidates"] / draws, 4),
            scored=round(total["scored"] / draws, 4),
            plus=round(total["plus"] / scored, 2),
            call=round(total["call"] / scored, 2),
            reach=min(1.0, round(self.reach / scored, 4)),
            targets=round(total["targets"] / scored, 3),
            close=round(total["close"] / scored, 4),
            texts_kept=round(total["texts_kept"] / texts, 4),
        )


def experience(folder: Path) -> Assumptions:
    """What the finished run in `folder` was like. ManifestError if there is none, or if no text was run."""
    manifest = read_manifest(folder)
    if manifest.state != "finished" or manifest.counts is None:
        raise ManifestError(f"{folder}: not finished; only a finished run says what texts bring")
    recipe = manifest.config
    words = load_tokenizer(recipe.model.path)
    sizes = Sizes.of(words, recipe.method)
    seen: dict[ToolName, _Seen] = {tool: _Seen() for tool in recipe.method.tools}
    texts: Counter[tuple[int, tuple[ToolName, ...]]] = Counter()
    run: Costs = {}
    for row in islice((row for row in read_rows(folder, _COLUMNS) if row["work"]), _MOST_TEXTS):
        [pieces] = tokenize_continuations(words, [" " + row["text"]])
        tools = tuple(tool for tool in recipe.method.tools if _worked(row, tool))
        texts[len(pieces.ids), tools] += 1
        for part in row["work"]:
            key = part["tool"], part["phase"]
            run[key] = run.get(key, Cost()) + Cost(**part["run"])
        for tool in tools:
            _look(seen[tool], row, tool, pieces, words, recipe.method)
    if not texts:
        raise ManifestError(f"{folder}: no text of this run went through the model")
    habits = {tool: found.habit(recipe.method.of(tool).k) for tool, found in seen.items()}
    start_s, pace = _pace(folder, manifest) or (DEMO.start_s, None)
    plain = Assumptions(
        source=str(folder), tools=habits, overheads={}, size=_size(folder), start_s=start_s, pace=pace
    )
    foreseen: Costs = {}
    for (n, tools), number in texts.items():
        for key, cost in foresee(n, tools, _FINE * number, sizes, recipe.method, plain).items():
            foreseen[key] = foreseen.get(key, Cost()) + cost
    return plain.model_copy(update={"overheads": _overheads(foreseen, run)})


def _worked(row: Mapping[str, Any], tool: ToolName) -> bool:
    return any(part["tool"] == tool for part in row["work"])


def _look(
    seen: _Seen,
    row: Mapping[str, Any],
    tool: ToolName,
    pieces: TokenizedText,
    words: PreTrainedTokenizerBase,
    method: MethodConfig,
) -> None:
    [funnel] = [stage for stage in row["funnel"] if stage["tool"] == tool]
    work = {part["phase"]: part["run"] for part in row["work"] if part["tool"] == tool}
    decoded = work.get("decode", {"tokens": 0})["tokens"]
    calls = [call for call in row["calls"] if call["tool"] == tool]
    groups = _groups(calls)
    prefixes = [(linearise(tool, *group[0]), linearise(tool, group[0][0])) for group in groups]
    lengths = [
        len(one.ids) for one in tokenize_continuations(words, [text for pair in prefixes for text in pair])
    ]
    seen.reach += sum(_last(pieces, positions) / len(pieces.ids) for _, positions, _ in groups)
    seen.totals.update(
        texts=1,
        positions=funnel["positions"],
        draws=funnel["draws"],
        drawn=max(0, decoded - funnel["positions"]),
        candidates=funnel["candidates"],
        scored=len(groups),
        plus=sum(lengths[::2]),
        call=sum(lengths[1::2]),
        targets=sum(_targets(pieces, positions) for _, positions, _ in groups),
        close=sum(close for *_, close in groups),
        texts_kept=int(any(call["gain"] >= method.of(tool).tau_f for call in calls)),
    )


def _groups(calls: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[str, str], list[int], bool]]:
    """Each distinct (c, r): its positions in characters, and whether L_i(e(c)) was needed at one of them."""
    found: defaultdict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for call in calls:
        found[call["input"], call["result"]].append(call)
    return [
        (key, [call["position"] for call in same], any(call["l_call"] is not None for call in same))
        for key, same in found.items()
    ]


def _tokens(pieces: TokenizedText, positions: Iterable[int]) -> list[int]:
    """Indices of the tokens that begin at these characters of the text, which begins at 1 in `pieces`."""
    starts = pieces.starts
    return [int(np.flatnonzero((starts >= 0) & (starts - 1 <= at))[-1]) if at else 0 for at in positions]


def _last(pieces: TokenizedText, positions: Iterable[int]) -> int:
    return max(_tokens(pieces, positions))


def _targets(pieces: TokenizedText, positions: Iterable[int]) -> int:
    wanted = {index + t for index in _tokens(pieces, positions) for t in range(WINDOW)}
    return len(wanted & set(range(len(pieces.ids))))


def _overheads(foreseen: Costs, run: Costs) -> dict[Phase, Overhead]:
    """By phase, over all tools; foreseen is _FINE times as much."""
    phases = sorted({phase for _, phase in foreseen})
    sums = {
        phase: [
            sum((cost for key, cost in costs.items() if key[1] == phase), Cost()) for costs in (foreseen, run)
        ]
        for phase in phases
    }
    return {
        phase: Overhead(
            tokens=round(_FINE * took.tokens / thought.tokens, 4),
            padding=round(took.padding / max(1, took.tokens), 4),
            attention_pairs=round(_FINE * took.attention_pairs / max(1, thought.attention_pairs), 4),
        )
        for phase, (thought, took) in sums.items()
        if thought.tokens
    }


def _size(folder: Path) -> Size:
    """From the files' own indices: the column of the texts, and everything else."""
    characters = texts = 0
    column = whole = 0
    for row in read_rows(folder, ["text"]):
        characters, texts = characters + len(row["text"]), texts + 1
    for path in parquet_files(folder / ROWS):
        whole += path.stat().st_size
        column += sum(size for name, size in _columns(path) if name == "text")
    return Size(text=round(column / max(1, characters), 3), rest=round((whole - column) / max(1, texts), 1))


def _columns(path: Path) -> Iterator[tuple[str, int]]:
    metadata = pq.read_metadata(path)
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            yield column.path_in_schema, column.total_compressed_size


def _pace(folder: Path, manifest: AnnotationManifest) -> tuple[float, Pace] | None:
    """The start's seconds, and the speed after it, from the times at which files were finished: each actor's
    first batch ends its start. None unless one session did all, with several batches an actor, and the files'
    times are its own (a copy has others)."""
    compute, actors = manifest.compute, manifest.config.ray.actors
    files = sorted((path.stat().st_mtime, path) for path in parquet_files(folder / ROWS))
    if compute is None or len(manifest.sessions) != 1 or len(files) < 3 * actors:
        return None
    [session] = manifest.sessions
    if session.finished is None or session.wall_s is None:
        return None
    start, end = (datetime.fromisoformat(at).timestamp() for at in (session.started, session.finished))
    first, last = files[actors - 1][0], files[-1][0]
    if not (start - _CLOCK_S < first < last < end + _CLOCK_S):
        return None
    later = sum((_cost(path) for _, path in files[actors:]), Cost())
    flops_per_s = compute.shape.flops(later) / (last - first)
    start_s = session.wall_s - compute.flops / flops_per_s
    pace = Pace(actors=actors, flops_per_s=float(f"{flops_per_s / actors:.4g}"))
    return round(max(0.0, start_s), 1), pace


def _cost(path: Path) -> Cost:
    rows = (row for batch in read_file_batches(path, ["work"]) for row in batch.to_pylist())
    return sum((Cost(**part["run"]) for row in rows for part in row["work"]), Cost())
