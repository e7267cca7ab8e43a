"""The progress actor of a run, which counts for all processes.

In: reports of the read tasks and the annotating actors (actor_reports.py). Out: the number of texts done,
the total once all corpus files are read, why the run must stop (isolation.py), and whether batches may
still begin (budget.py). progress_line.py shows it. The manifest uses the GPU-hours only.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.annotation.actor_reports import ActorReport, ActorReports
from pipeline.annotation.isolation import FailedText, FailureBudget
from pipeline.annotation.metrics import DONE, EXPECTED, FAILURE_BUDGET_USED, STALLED, TEXTS
from pipeline.annotation.stall import Activity, BatchInProgress
from pipeline.runtime.actor_names import ActorNames
from pipeline.runtime.metrics import Recorder
from pipeline.storage.expected_texts import ExpectedTexts

_LOST_NODES_PER_CRASH = 3  # nodes that may be lost with one task before that counts as a crash of it


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run is."""

    done: int  # texts, those of earlier sessions included
    expected: ExpectedTexts | None  # None until a corpus file is read
    begun: float = 0.0  # texts of the batches in progress, as if their shares were whole texts
    actors: int = 0  # processes of annotating actors
    ready: int = 0  # those whose model is loaded
    batches: int = 0  # in progress, in processes that are alive
    refused: bool = False  # whether a batch was not allowed to begin
    gpu_hours: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether every text of the corpus is done."""
        read = self.expected
        return read is not None and not read.is_estimate and self.done >= read.texts


class ProgressActor:
    """Counts the texts read and annotated, and tracks failures and crashes."""

    def __init__(self, tasks: int, done: int, failures: FailureBudget, run: str) -> None:
        self._tasks = tasks
        self._recorder = Recorder(run)
        self._failures = failures
        self._run = run
        self._reports = ActorReports()
        self._unended_starts: dict[Hashable, list[str]] = {}  # the nodes, by task
        self._batches: dict[Hashable, str] = {}  # in progress: the processes, by batch
        self._began: dict[Hashable, float] = {}  # when, by batch
        self._stalled: str | None = None
        self._stopping = self._refused = False
        self._texts_by_task: dict[str, int] = {}
        self._reading: dict[str, tuple[int, float]] = {}  # texts and share, of tasks that have not ended
        self._done = done
        self._tools_problem: str | None = None
        self._record()

    def tools_ended_start(self, problem: str) -> None:
        """All tools run, or one cannot start because of `problem`."""
        self._tools_problem = problem

    def tools_problem(self) -> str | None:
        """None while the tools start, "" when all run, else why one cannot start."""
        return self._tools_problem

    def read(self, task: str, texts: int) -> None:
        """A read task has ended. A repeated task reports the same number again."""
        self._texts_by_task[task] = texts
        self._reading.pop(task, None)
        self._record()

    def reading(self, task: str, texts: int, share: float) -> None:
        """A read task has read this share of its files so far, with `texts` texts."""
        if task not in self._texts_by_task:
            self._reading[task] = texts, share

    def begin(self, task: Hashable, node: str = "") -> int:
        """An actor on `node` starts this task. Returns its earlier starts without an end.

        Each may be a crash. A lost node says nothing of a text, unless several were lost with it: where a
        node is a container, the kernel may end all of it when one process takes too much memory.
        """
        earlier = self._unended_starts.get(task, [])
        dead = _dead_nodes() if earlier else set()
        lost = sum(node in dead for node in earlier)
        self._unended_starts[task] = [*earlier, node]
        return len(earlier) - lost + lost // _LOST_NODES_PER_CRASH

    def end(self, task: Hashable) -> None:
        """An actor has ended this task, with or without an error."""
        self._unended_starts.pop(task, None)

    def begin_batch(self, batch: Hashable, process: str) -> bool:
        """A process wants to annotate this batch. Returns whether it may."""
        if self._stopping:
            self._refused = True
            return False
        self._batches[batch], self._began[batch] = process, time.monotonic()
        return True

    def end_batch(self, batch: Hashable) -> None:
        """The rows of this batch are written."""
        self._batches.pop(batch, None)
        self._began.pop(batch, None)

    def stop(self) -> None:
        """Let no further batch begin."""
        self._stopping = True

    def is_drained(self) -> bool:
        """Whether no batch may begin and none is in progress."""
        return self._stopping and not self._batches_in_progress()

    def _batches_in_progress(self) -> int:
        alive = self._reports.alive()
        return sum(process in alive for process in self._batches.values())

    def report(self, report: ActorReport) -> None:
        """The state of the process of an annotating actor."""
        self._reports.add(report)

    def tools_hold(self, gpus: float) -> None:
        """The replicas of the tools have held so many GPUs since this was said last."""
        self._reports.meter.add("tools", gpus)

    def annotated(self, texts: int, failed: Sequence[FailedText] = ()) -> str | None:
        """An actor has annotated `texts` more texts; a repeated task counts again.

        Returns why to stop if too many texts have failed so far.
        """
        self._done += texts
        self._failures.add(failed)
        self._record()
        return self._failures.verdict(self._done)

    def unselected(self, texts: Counter[tuple[str, str]]) -> None:
        """A read task has written rows of texts that no tool is tried on, by status and class of reason."""
        self._recorder.record((TEXTS, labels, float(number)) for labels, number in texts.items())
        self.annotated(texts.total())

    def _record(self) -> None:
        """Record the metrics; an unread file is expected to have as many texts as a read one."""
        used = self._failures.used(self._done)
        samples = [(DONE, (), float(self._done)), (FAILURE_BUDGET_USED, (), used)]
        if (expected := self._expected()) is not None:
            samples.append((EXPECTED, (), expected))
        self._recorder.record(samples)

    def _expected(self) -> float | None:
        """What is not read is expected to have as many texts as what is."""
        texts = sum(self._texts_by_task.values()) + sum(texts for texts, _ in self._reading.values())
        read = len(self._texts_by_task) + sum(share for _, share in self._reading.values())
        if not read:
            return None
        if len(self._texts_by_task) == self._tasks:
            return float(texts)
        return max(texts * self._tasks / read, self._done)

    def expected(self) -> ExpectedTexts | None:
        """Texts of the corpus; None until a corpus file is read."""
        texts = self._expected()
        if texts is None:
            return None
        return ExpectedTexts(texts=round(texts), is_estimate=len(self._texts_by_task) < self._tasks)

    def progress(self) -> RunProgress:
        """How far the run is."""
        reports = self._reports.alive().values()
        return RunProgress(
            done=self._done,
            expected=self.expected(),
            begun=sum(report.texts for report in reports),
            actors=len(reports),
            ready=sum(report.ready for report in reports),
            batches=self._batches_in_progress(),
            refused=self._refused,
            gpu_hours=self._reports.meter.gpu_s / 3600,
        )

    def activity(self) -> Activity:
        """What the processes of the run do now (stall.py)."""
        reports, now = self._reports.alive(), time.monotonic()
        batches = [
            BatchInProgress(batch[0], batch[-1], len(batch), now - self._began[batch])
            for batch, process in self._batches.items()
            if process in reports and isinstance(batch, tuple)
        ]
        done, total = self.done_and_total()
        return Activity(
            done=done,
            total=total,
            read=len(self._texts_by_task),
            to_read=self._tasks,
            loading=tuple(report.age_s for report in reports.values() if not report.ready),
            ready=sum(report.ready for report in reports.values()),
            batches=tuple(batches),
            waits=tuple(wait for report in reports.values() for wait in report.waits),
        )

    def stalls(self, reason: str | None) -> None:
        """The run stalls for this reason; None: it goes on. For the metric."""
        ended = [(STALLED, (self._stalled,), 0.0)] if self._stalled not in (None, reason) else []
        self._recorder.record([*ended, *([(STALLED, (reason,), 1.0)] if reason is not None else [])])
        self._stalled = reason

    def __repr__(self) -> str:
        return f"ProgressActor({self._run}, {self._done} texts)"

    def done_and_total(self) -> tuple[int, int | None]:
        """Texts annotated, those of earlier sessions included, and texts of the corpus.

        The second number is None until every corpus file is read.
        """
        all_read = len(self._texts_by_task) == self._tasks
        return self._done, sum(self._texts_by_task.values()) if all_read else None


def start_progress(tasks: int, done: int, failures: FailureBudget, run: str) -> Any:
    """Start the progress actor on this node; returns its handle. `run` labels its metrics."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    name = ActorNames("progress actor", Path(run).name)()
    actor = ray.remote(ProgressActor).options(num_cpus=0, scheduling_strategy=here, **name)
    return actor.remote(tasks, done, failures, run)


def _dead_nodes() -> set[str]:
    if not ray.is_initialized():
        return set()
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}  # type: ignore[no-untyped-call]
