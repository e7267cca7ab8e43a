"""Says why a run stalls: looks when no text has been done for a while, and again at growing intervals.

In: the progress actor, Ray's resources, Ray Serve's replicas, the disk of the output. Out: one sentence in
the log and on the terminal, again when the reason changes, and the metric `toolformer_stalled`. It never
ends a run, and its own failure is only logged. What the sentence says is decided in stall.py.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray

from pipeline.annotation.stall import Diagnosis, Snapshot, ToolState, diagnose
from pipeline.base.config import AnnotateConfig
from pipeline.base.repeating import repeating
from tools_service.runtime.resources import ProcessRequest, ResourceRequest, free_nodes

logger = logging.getLogger(__name__)

_POLL_S = 5.0
_ANSWER_S = 10.0  # of the progress actor and of the disk
_MAX_PAUSE_S = 3600.0  # between two sentences
_MIN_FREE_BYTES = 64 * 2**20
_FASTER_THAN_USUAL = 2.0  # a batch that takes up to so many times the longest pause so far is no stall


class StallWatch:
    """Watches one run. `take` makes a snapshot after so many seconds without a text."""

    def __init__(
        self,
        done: Callable[[], int],
        take: Callable[[float], Snapshot],
        show: Callable[[str | None], None],
        after_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`show` is told the reason of a stall, for the metric, and None at its end."""
        self._done, self._take, self._show, self._after_s, self._clock = done, take, show, after_s, clock
        self._last_done: int | None = None
        self._since = clock()
        self._longest_pause = 0.0
        self._look_s = after_s  # seconds of the stall at which to look
        self._next_s = 0.0  # and at which to say the same reason again
        self.diagnosis: Diagnosis | None = None
        """Of the stall that lasts, if it has been named."""

    def look(self) -> None:
        """Look once. Never raises: the run does not depend on it."""
        try:
            self._look()
        except Exception as error:
            logger.debug("the run's state cannot be read", exc_info=error)

    def _look(self) -> None:
        done, now = self._done(), self._clock()
        stalled_s = now - self._since
        if done != self._last_done:
            self._go_on(done, now)
        elif stalled_s >= self._look_s:
            self._look_s = stalled_s + self._after_s
            seen = self._take(stalled_s)
            diagnosis = diagnose(seen)
            # Batches that began a moment ago, such as the first ones, are no stall.
            just_began = all(batch.seconds < self._after_s for batch in seen.activity.batches)
            is_usual = stalled_s < _FASTER_THAN_USUAL * self._longest_pause
            if diagnosis.is_work and (just_began or is_usual):
                return
            is_known = self.diagnosis is not None and self.diagnosis.reason == diagnosis.reason
            if is_known and stalled_s < self._next_s:
                return
            self._next_s = stalled_s + min(stalled_s, _MAX_PAUSE_S)
            self.diagnosis = diagnosis
            logger.warning("no text was done for %.0f s: %s", stalled_s, diagnosis.sentence)
            self._show(diagnosis.reason)

    def _go_on(self, done: int, now: float) -> None:
        """Texts are done (again)."""
        if self._last_done is not None:  # what comes before the first look is no pause
            self._longest_pause = max(self._longest_pause, now - self._since)
            if self.diagnosis is not None:
                logger.warning("texts are done again, after %.0f s", now - self._since)
                self._show(None)
                self.diagnosis = None
        self._last_done, self._since, self._look_s = done, now, self._after_s


@contextmanager
def watched_stalls(
    config: AnnotateConfig, request: ResourceRequest, applications: Mapping[str, str], progress: Any
) -> Iterator[StallWatch]:
    """Watch a run during the block; `applications` are those of Ray Serve, by tool."""

    def done() -> int:
        number, _ = ray.get(progress.done_and_total.remote(), timeout=_ANSWER_S)
        return int(number)

    def take(stalled_s: float) -> Snapshot:
        return snapshot(config, request, applications, progress, stalled_s)

    watch = StallWatch(done, take, progress.stalls.remote, config.ray.stall_warning_s)
    if not config.ray.stall_warning_s:
        yield watch
        return
    with repeating(watch.look, min(_POLL_S, config.ray.stall_warning_s / 2), at_end=False):
        yield watch


def snapshot(
    config: AnnotateConfig,
    request: ResourceRequest,
    applications: Mapping[str, str],
    progress: Any,
    stalled_s: float,
) -> Snapshot:
    """The state of a run. `request` is that of run.py: annotators, the tools in order, reading."""
    annotator, *replicas, reader = request.processes
    return Snapshot(
        stalled_s=stalled_s,
        activity=ray.get(progress.activity.remote(), timeout=_ANSWER_S),
        actors=config.ray.needed_actors,
        annotator=annotator,
        reader=reader,
        tools=_tools(dict(zip(config.method.tools, replicas, strict=True)), applications),
        free=tuple(free_nodes()),
        disk=disk_problem(config.output),
    )


def _tools(replicas: Mapping[str, ProcessRequest], applications: Mapping[str, str]) -> tuple[ToolState, ...]:
    from ray import serve

    overviews = serve.status().applications
    states = []
    for tool, application in applications.items():
        overview = overviews.get(application)
        for deployment in overview.deployments.values() if overview is not None else ():
            counts = {str(state): number for state, number in deployment.replica_states.items()}
            running, wanted = counts.get("RUNNING", 0), max(replicas[tool].count, sum(counts.values()))
            states.append(ToolState(tool, replicas[tool], running, wanted, deployment.message))
    return tuple(states)


def disk_problem(folder: Path) -> str | None:
    """What is wrong with the disk of `folder`. A network disk that hangs costs a few seconds."""
    free: list[int] = []

    def ask() -> None:
        with suppress(OSError):  # the run itself says that its output is gone
            free.append(shutil.disk_usage(folder).free)

    thread = threading.Thread(target=ask, name="disk", daemon=True)
    thread.start()
    thread.join(_ANSWER_S)
    if thread.is_alive():
        return f"the disk of {folder} does not answer within {_ANSWER_S:.0f} s"
    if free and free[0] < _MIN_FREE_BYTES:
        return f"the disk of {folder} is full: {free[0] / 2**20:.0f} MiB are free"
    return None
