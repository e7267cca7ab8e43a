"""The progress of a run: one actor that counts for all processes, and a progress bar.

In: reports of the read tasks and the annotating actors. Out: the number of texts done, the total once all
corpus files are read, and why the run must stop (isolation.py). The manifest does not use these counts.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

from pipeline.annotation.isolation import FailedText, FailureBudget
from pipeline.annotation.metrics import DONE, EXPECTED, FAILURE_BUDGET_USED, TEXTS
from pipeline.base.repeating import repeating
from pipeline.runtime.metrics import Recorder
from pipeline.storage.expected_texts import ExpectedTexts
from tools_service.base.files import OutputError

_REFRESH_S = 0.5
_REFRESH_IN_LOGS_S = 30.0


class ProgressActor:
    """Counts the texts read and annotated, and tracks failures and crashes."""

    def __init__(self, tasks: int, done: int, failures: FailureBudget, run: str) -> None:
        self._tasks = tasks
        self._recorder = Recorder(run)
        self._failures = failures
        self._unended_starts: Counter[Hashable] = Counter()
        self._texts_by_task: dict[str, int] = {}
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
        self._record()

    def begin(self, task: Hashable) -> int:
        """An actor starts this task. Returns its earlier starts without an end: each may be a crash."""
        self._unended_starts[task] += 1
        return self._unended_starts[task] - 1

    def end(self, task: Hashable) -> None:
        """An actor has ended this task, with or without an error."""
        self._unended_starts.pop(task, None)

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
        if not self._texts_by_task:
            return None
        return sum(self._texts_by_task.values()) * self._tasks / len(self._texts_by_task)

    def expected(self) -> ExpectedTexts | None:
        """Texts of the corpus; None until a corpus file is read."""
        texts = self._expected()
        if texts is None:
            return None
        return ExpectedTexts(texts=round(texts), is_estimate=len(self._texts_by_task) < self._tasks)

    def done_and_total(self) -> tuple[int, int | None]:
        """Texts annotated, those of earlier sessions included, and texts of the corpus.

        The second number is None until every corpus file is read.
        """
        all_read = len(self._texts_by_task) == self._tasks
        return self._done, sum(self._texts_by_task.values()) if all_read else None


def start_progress(tasks: int, done: int, failures: FailureBudget, run: str) -> Any:
    """Start the progress actor on this node; returns its handle. `run` labels its metrics."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(ProgressActor).options(num_cpus=0, scheduling_strategy=here)
    return actor.remote(tasks, done, failures, run)


@contextmanager
def progress_bar(progress: Any, folder: Path) -> Iterator[None]:
    """Draw the state of the progress actor on standard error during the block, and write it to `folder`."""
    interval = _REFRESH_S if sys.stderr.isatty() else _REFRESH_IN_LOGS_S
    done, _ = ray.get(progress.done_and_total.remote())
    with tqdm(desc="annotate", unit=" texts", initial=done, mininterval=interval) as bar:
        state = _ProgressState(progress, folder, bar)
        with repeating(state.update, _REFRESH_S):
            yield


@dataclass(slots=True)
class _ProgressState:
    progress: Any
    folder: Path
    bar: tqdm[Any]
    written: ExpectedTexts | None = None

    def update(self) -> None:
        done, total = ray.get(self.progress.done_and_total.remote())
        self.bar.total = max(total, done) if total is not None else None
        self.bar.update(done - self.bar.n)
        if (expected := ray.get(self.progress.expected.remote())) not in (None, self.written):
            self.written = expected
            with suppress(OutputError):  # the run itself says that a disk is full
                expected.write(self.folder)
