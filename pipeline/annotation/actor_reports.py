"""What annotating actors report every two seconds, and what that says of the whole run.

In: a report of each actor's process: the GPUs that it holds, whether its model is loaded, the share of its
batches that is done. Out: how many actors there are, the texts that they are working on, and the GPU-hours
since the start. A process that no longer reports has gone, with its node or by itself. No Ray here: the
handle of the progress actor comes in.
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pipeline.annotation.stall import ToolWait
from pipeline.annotation.tool_waits import WatchedTools
from tools_service.tools.client import ToolClient

_INTERVAL_S = 2.0
_GONE_AFTER_S = 30.0  # a busy machine delays reports


@dataclass(frozen=True, slots=True)
class ActorReport:
    """The state of one process of an annotating actor."""

    process: str  # no two processes share it, also not those of one actor
    gpus: float
    ready: bool = False  # whether the model is loaded
    texts: float = 0.0  # of the batches in progress, as if their shares were whole texts
    age_s: float = 0.0  # of the process's reports
    waits: tuple[ToolWait, ...] = ()  # for tools


class GpuMeter:
    """The GPU-seconds of holders that report again and again what they hold."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, float] = {}  # by holder, when it reported last
        self.gpu_s = 0.0

    def add(self, holder: str, gpus: float) -> None:
        """The holder has held `gpus` since its last report; the first one counts from now."""
        now = self._clock()
        self.gpu_s += gpus * (now - self._seen.get(holder, now))
        self._seen[holder] = now

    def lately(self) -> set[str]:
        """The holders that have reported within the last half minute."""
        since = self._clock() - _GONE_AFTER_S
        return {holder for holder, seen in self._seen.items() if seen >= since}


class ActorReports:
    """The latest report of each process, in the progress actor."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.meter = GpuMeter(clock)
        self._latest: dict[str, ActorReport] = {}

    def add(self, report: ActorReport) -> None:
        self.meter.add(report.process, report.gpus)
        self._latest[report.process] = report

    def alive(self) -> dict[str, ActorReport]:
        """The reports of the processes that are there, by process."""
        lately = self.meter.lately()
        return {process: report for process, report in self._latest.items() if process in lately}


class Reporter:
    """Sends the reports of this process to the progress actor, from a thread."""

    def __init__(self, progress: Any, gpus: float) -> None:
        self._progress = progress
        self._report = ActorReport(uuid.uuid4().hex, gpus)
        self._began = time.monotonic()
        self._tools: WatchedTools | None = None
        self._numbers = itertools.count()
        self._batches: dict[int, float] = {}  # texts of the batches in progress, times the share done
        self._send()
        threading.Thread(target=self._repeat, daemon=True, name="reports").start()

    @property
    def process(self) -> str:
        return self._report.process

    def watching(self, tools: ToolClient) -> ToolClient:
        """The same client; from now on its waits are reported."""
        self._tools = WatchedTools(tools)
        return self._tools

    def ready(self) -> None:
        """The model is loaded."""
        self._report = replace(self._report, ready=True)
        self._send()

    @contextmanager
    def batch(self, texts: int) -> Iterator[Callable[[float], None]]:
        """A batch of `texts` is in progress during the block, which may say what share of it is done."""
        key = next(self._numbers)
        self._batches[key] = 0.0

        def done(share: float) -> None:
            self._batches[key] = share * texts

        try:
            yield done
        finally:
            del self._batches[key]
            self._send()

    def _send(self) -> None:
        texts = sum(list(self._batches.values()))
        waits = self._tools.waits() if self._tools is not None else ()
        age_s = time.monotonic() - self._began
        self._progress.report.remote(replace(self._report, texts=texts, age_s=age_s, waits=waits))

    def _repeat(self) -> None:
        while True:
            time.sleep(_INTERVAL_S)
            try:
                self._send()
            except Exception:  # Ray is shutting this process down
                return
