"""How far a run is, read from its files while it goes on, after it was killed or when it has finished.

In: a folder (run_parts.py says what it stands for). Out: a `PartStatus` for each output. Needs no Ray. Row
files never change, so a reader that looks again reads the new ones only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from pipeline.finetuning.checkpoints.run_folder import RunFolder
from pipeline.finetuning.checkpoints.run_identity import FinetuneManifest
from pipeline.finetuning.watching.metrics_log import read_events
from pipeline.report.row_counts import RowCounter, RowCounts
from pipeline.report.run_parts import chunk_folders, parts_of
from pipeline.storage.expected_texts import read_expected
from pipeline.storage.logs import last_problem
from pipeline.storage.manifest import MANIFEST, AnnotationManifest, read_manifest
from tools_service.base.errors import ConfigurationError, ToolformerError, brief
from tools_service.base.files import read_json
from tools_service.base.lock_holder import LockHolder, lock_holder
from tools_service.base.locks import LOCK, lock_beside
from tools_service.base.settings import Frozen

State = Literal["starting", "running", "stopped", "unfinished", "finished"]
"""stopped: unfinished, and no process writes; unfinished: the file system cannot tell."""


class PartStatus(Frozen):
    """The state of one output. Rates are per second of the latest start."""

    output: str
    kind: Literal["annotation", "C*", "training", "evaluation", "output"]
    state: State
    unit: Literal["texts", "steps", "questions"] = "texts"
    done: int = 0
    total: int | None = None  # None: not known
    total_is_estimate: bool = False
    rate: float | None = None
    seconds_left: float | None = None
    texts: dict[str, int] = {}  # noqa: RUF012  # by status
    kept: dict[str, int] = {}  # noqa: RUF012  # calls by tool, at tau_f
    failures: dict[str, int] = {}  # noqa: RUF012  # texts or calls by reason
    values: dict[str, float] = {}  # noqa: RUF012  # of a training: the latest loss, perplexity and speed
    right: dict[str, dict[str, float]] = {}  # noqa: RUF012  # percent by label and finished benchmark
    last_problem: str | None = None  # of the logs
    sessions: int | None = None
    holder: LockHolder | None = None


class RunStatus(Frozen):
    """The state of everything that a folder holds."""

    folder: str
    parts: tuple[PartStatus, ...]
    problems: tuple[str, ...] = ()


class StatusReader:
    """Reads the status of a folder, again and again if wanted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._counters: dict[Path, RowCounter] = {}

    def read(self) -> RunStatus:
        """The status now. Raises ConfigurationError for a folder that no command writes."""
        try:
            parts = parts_of(self.folder)
        except ConfigurationError:
            if (starting := _starting(self.folder)) is None:
                raise
            return RunStatus(folder=str(self.folder), parts=(starting,))
        problems = list(parts.problems)
        readers: list[tuple[Callable[[Path], PartStatus], list[Path]]] = [
            (self._annotation, parts.annotations),
            (_augmented, parts.augmented),
            (_training, parts.models),
            (_evaluation, parts.evaluations),
        ]
        found = []
        for read, paths in readers:
            for path in paths:
                try:
                    found.append(read(path))
                except (ToolformerError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                    text = brief(error)
                    problems.append(text if str(path) in text else f"{path}: {text}")
        # Between two steps of the demo none of them is running.
        if not any(part.state == "running" for part in found) and (starting := _starting(self.folder)):
            found.append(starting)
        return RunStatus(folder=str(self.folder), parts=tuple(found), problems=tuple(problems))

    def _annotation(self, folder: Path) -> PartStatus:
        manifest, holder = read_manifest(folder), lock_holder(folder)
        if manifest.state == "finished" and manifest.counts is not None:
            counts = manifest.counts
            return PartStatus(
                output=str(folder),
                kind="annotation",
                state="finished",
                done=counts.texts,
                total=counts.texts,
                texts=counts.status,
                kept={tool: sums.kept for tool, sums in counts.tools.items()},
                failures=counts.reasons.get("failed", {}),
                last_problem=last_problem(folder),
                sessions=len(manifest.sessions),
                holder=holder,
            )
        tau_f = {tool: manifest.config.method.of(tool).tau_f for tool in manifest.config.method.tools}
        counter = self._counters.setdefault(folder, RowCounter(folder, tau_f))
        return _unfinished_annotation(folder, manifest, holder, counter.count())


def _starting(path: Path) -> PartStatus | None:
    """The first output at `path`, or in it, where a process works that has written nothing yet; or None."""
    outputs = [path]
    if path.is_dir():
        outputs += [child for child in sorted(path.iterdir()) if child.is_dir()]
        outputs += _locked_beside(path, "*")
    elif path.suffix == ".json" and path.parent.is_dir():
        outputs += _locked_beside(path.parent, f"{path.stem}.*")
    for output in outputs:
        holder = lock_holder(output)
        if holder is not None and holder.holds:
            return PartStatus(output=str(output), kind="output", state="starting", holder=holder)
    return None


def _locked_beside(folder: Path, pattern: str) -> list[Path]:
    """The outputs in `folder` with a lock file beside them."""
    return [
        folder / lock.name[1 : -len(LOCK)] for lock in sorted(folder.glob(lock_beside(folder / pattern).name))
    ]


def _unfinished_annotation(
    folder: Path, manifest: AnnotationManifest, holder: LockHolder | None, counts: RowCounts
) -> PartStatus:
    expected = read_expected(folder)
    state = _state(holder)
    since = _seconds(manifest.sessions[-1].started) if manifest.sessions else None
    rate = counts.rate(since) if state != "stopped" else None
    total = max(expected.texts, counts.texts) if expected is not None else None
    return PartStatus(
        output=str(folder),
        kind="annotation",
        state=state,
        done=counts.texts,
        total=total,
        total_is_estimate=expected is not None and expected.is_estimate,
        rate=rate,
        seconds_left=_left(counts.texts, total, rate),
        texts=dict(counts.status),
        kept=dict(counts.kept),
        failures=dict(counts.failures),
        last_problem=last_problem(folder),
        sessions=len(manifest.sessions),
        holder=holder,
    )


def _augmented(folder: Path) -> PartStatus:
    """merge writes the whole folder at once; a lock means that a new one is being made."""
    manifest, holder = read_json(folder / MANIFEST), lock_holder(folder)
    state: State = "running" if holder is not None and holder.holds else "finished"
    return PartStatus(
        output=str(folder),
        kind="C*",
        state=state,
        done=manifest["texts"],
        total=manifest["texts"],
        kept={tool: examples["calls"] for tool, examples in manifest["tools"].items()},
        holder=holder,
    )


def _training(folder: Path) -> PartStatus:
    run_folder = RunFolder(folder)
    run, holder = run_folder.identity(), lock_holder(folder)
    events, _ = read_events(run_folder.metrics)
    done = max((event["step"] for event in events), default=0)
    values: dict[str, float] = {}
    for event in events:
        values.update({name: event[key] for key, name in _SHOWN.items() if event.get(key) is not None})
    finished = isinstance(run, FinetuneManifest)
    if isinstance(run, FinetuneManifest):
        values["best perplexity"] = run.best.perplexity
    state: State = "finished" if finished else _state(holder)
    rate = _steps_per_s(run_folder, done, holder) if state in ("running", "unfinished") else None
    return PartStatus(
        output=str(folder),
        kind="training",
        state=state,
        unit="steps",
        done=done,
        total=run.config.max_steps,
        rate=rate,
        seconds_left=_left(done, run.config.max_steps, rate),
        values=values,
        holder=holder,
    )


_SHOWN = {
    "loss": "loss",
    "perplexity": "perplexity",
    "tokens_per_s": "tokens per s",
    "utilisation": "FLOP utilisation",
}


def _steps_per_s(folder: RunFolder, done: int, holder: LockHolder | None) -> float | None:
    """Since the last checkpoint of this start, else since the start, which includes loading the model."""
    since = _seconds(holder.since) if holder is not None else 0.0
    written: dict[int, float] = {}
    for path in folder.checkpoints.glob("step-*"):
        with suppress(OSError, ValueError):  # the run removes old ones meanwhile
            written[int(path.name.removeprefix("step-"))] = path.stat().st_mtime
    base = max((step for step in written if step < done), default=0)
    begun = max(since, written.get(base, 0.0))
    elapsed = folder.metrics.stat().st_mtime - begun if folder.metrics.exists() else 0.0
    return (done - base) / elapsed if begun and elapsed > 0 and done > base else None


def _evaluation(file: Path) -> PartStatus:
    """How many questions there are stands in no file before a benchmark is finished."""
    models = read_json(file)["models"] if file.exists() else {}
    chunks = [path for folder in chunk_folders(file) for path in sorted(folder.glob("*.parquet"))]
    done = sum(int(result["n"]) for model in models.values() for result in model["benchmarks"].values())
    holder = _holder_of(file)
    is_open = bool(chunks) or (holder is not None and holder.holds)
    state: State = _state(holder) if is_open else "finished"
    failures: Counter[str] = Counter()
    for model in models.values():
        for result in model["benchmarks"].values():
            failures.update(result["failed_calls"])
    return PartStatus(
        output=str(file),
        kind="evaluation",
        state=state,
        unit="questions",
        done=done + sum(int(pq.read_metadata(path).num_rows) for path in chunks),
        total=done if state == "finished" else None,
        failures=dict(failures.most_common()),
        right={
            label: {name: round(100 * float(r["accuracy"]), 1) for name, r in model["benchmarks"].items()}
            for label, model in models.items()
        },
        holder=holder,
    )


def _holder_of(file: Path) -> LockHolder | None:
    """The process that evaluates a label of this evaluation; each label has a lock of its own."""
    found = [lock_holder(output) for output in _locked_beside(file.parent, f"{file.stem}.*")]
    holders = [holder for holder in found if holder is not None]
    return max(holders, key=lambda holder: holder.holds is True, default=None)


def _state(holder: LockHolder | None) -> State:
    if holder is None or holder.holds is False:
        return "stopped"
    return "running" if holder.holds else "unfinished"


def _left(done: int, total: int | None, rate: float | None) -> float | None:
    return (total - done) / rate if total is not None and rate else None


def _seconds(moment: str) -> float:
    """Seconds since 1970; 0 if `moment` is no time."""
    try:
        return datetime.fromisoformat(moment).astimezone(UTC).timestamp()
    except ValueError:
        return 0.0
