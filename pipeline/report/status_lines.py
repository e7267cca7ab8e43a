"""The status of a run in plain lines. In: a `RunStatus`. Out: lines of text, without colours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipeline.report.status import PartStatus, RunStatus
from tools_service.base.lock_holder import LockHolder

_NOT_RUNNING = "no process writes here; the same command goes on"


def status_lines(status: RunStatus) -> Iterator[str]:
    """A line for each output, and lines with what is known about it."""
    for part in status.parts:
        yield f"{part.output}: {_what(part)}"
        yield from (f"  {line}" for line in _details(part))
    for problem in status.problems:
        yield f"! {problem}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _what(part: PartStatus) -> str:
    if part.state == "starting":
        return f"starting; {_process(part.holder)}"
    state = {"running": _process(part.holder), "stopped": _NOT_RUNNING}.get(part.state)
    return f"{part.kind}, {part.state if part.state != 'stopped' else 'unfinished'}" + (
        f"; {state}" if state else ""
    )


def _process(holder: LockHolder | None) -> str:
    return (
        f"process {holder.pid} on {holder.host} writes here since {holder.since}"
        if holder is not None
        else ""
    )


def _details(part: PartStatus) -> Iterator[str]:
    if part.state == "starting":
        return
    yield _progress(part)
    if part.texts:
        yield "texts: " + _counts(part.texts)
    if part.kept:
        yield "calls kept: " + _counts(part.kept)
    if part.values:
        yield ", ".join(f"{name} {value:.4g}" for name, value in part.values.items())
    for label, scores in part.right.items():
        yield f"{label}, percent right: " + ", ".join(f"{name} {value:g}" for name, value in scores.items())
    if part.failures:
        yield ("failed calls: " if part.kind == "evaluation" else "failed texts: ") + _counts(part.failures)
    if part.last_problem:
        yield f"last warning or error: {part.last_problem}"
    if part.sessions and part.sessions > 1:
        yield f"started {part.sessions} times"
    if part.state == "stopped" and part.holder is not None:
        yield f"last written by process {part.holder.pid} on {part.holder.host}, which did not end by itself"


def _progress(part: PartStatus) -> str:
    if part.state == "finished" and part.kind == "training" and 0 < part.done < (part.total or 0):
        return f"stopped early at step {part.done:,} of {part.total:,}"
    if part.state == "finished":
        return f"{part.done:,} {part.unit}"
    words = f"{part.done:,} {part.unit} done, of how many is not known yet"
    if part.total is not None:
        share = part.done / part.total if part.total else 1.0
        about = "about " if part.total_is_estimate else ""
        words = f"{part.done:,} of {about}{part.total:,} {part.unit} ({share:.0%})"
    if part.rate is not None:
        words += f", {part.rate:.3g} per s"
    if part.seconds_left is not None:
        words += f", about {duration(part.seconds_left)} left"
    return words


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.items())
