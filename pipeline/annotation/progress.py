"""How far a run is: one counter for all processes, one line for the user.

`ProgressActor` is an actor on the driver's node that read tasks and annotators report to; what it says to annotators
is isolation.py's. `shown` draws it meanwhile
as a progress bar; the total appears once every shard has been read.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

from pipeline.annotation.isolation import CrashTracker, Failed, FailureBudget
from pipeline.annotation.metrics import DONE, EXPECTED, Recorder

_EVERY_S = 0.5
_EVERY_S_IN_LOGS = 30.0


class ProgressActor:
    """Texts read, by read task, texts annotated, and what annotators died with."""

    def __init__(self, tasks: int, done: int, failures: FailureBudget, run: str) -> None:
        self._tasks = tasks
        self._recorder = Recorder(run)
        self._failures = failures
        self._attempts = CrashTracker()
        self._starts = 0
        self._texts: dict[str, int] = {}
        self._done = done
        self._show()

    def read(self, task: str, texts: int) -> None:
        """A read task came to its end. A repeated one says the same again."""
        self._texts[task] = texts
        self._show()

    def starting(self) -> int:
        """An annotator starts; how many did since the last one that is ready."""
        self._starts += 1
        return self._starts - 1

    def ready(self) -> None:
        """An annotator has its model."""
        self._starts = 0

    def begin(self, texts: Sequence[int]) -> int:
        """isolation.Attempts.begin, for all annotators."""
        return self._attempts.begin(texts)

    def end(self, texts: Sequence[int]) -> None:
        """isolation.Attempts.end."""
        self._attempts.end(texts)

    def annotated(self, texts: int, failed: Sequence[Failed] = ()) -> str | None:
        """So many more texts came out of an annotator; counted again if their task is repeated.

        Why to stop, if too many `failed` so far.
        """
        self._done += texts
        self._show()
        self._failures.add(failed)
        return self._failures.verdict(self._done)

    def _show(self) -> None:
        """In the metrics, with what the files read so far let expect of the others."""
        samples = [(DONE, (), float(self._done))]
        if self._texts:
            samples.append((EXPECTED, (), sum(self._texts.values()) * self._tasks / len(self._texts)))
        self._recorder.record(samples)

    def done(self) -> int:
        return self._done

    def total(self) -> int | None:
        """Texts in all, known once every shard has been read."""
        return sum(self._texts.values()) if len(self._texts) == self._tasks else None


def start_progress(tasks: int, done: int, failures: FailureBudget, run: str) -> Any:
    """The tally's actor handle; `run` is its name in the metrics. It lives as long as the handle and costs no
    CPU share."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(ProgressActor)
        .options(num_cpus=0, scheduling_strategy=here)
        .remote(tasks, done, failures, run)
    )


@contextmanager
def shown(tally: Any, label: str) -> Iterator[None]:
    """Meanwhile draw the tally's state on standard error."""
    stop = threading.Event()
    thread = threading.Thread(target=_draw, args=(tally, label, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _draw(tally: Any, label: str, stop: threading.Event) -> None:
    pause = _EVERY_S if sys.stderr.isatty() else _EVERY_S_IN_LOGS
    with tqdm(desc=label, unit=" texts", initial=ray.get(tally.done.remote()), mininterval=pause) as bar:
        last = False
        while not last:
            last = stop.wait(_EVERY_S)
            done, total = ray.get([tally.done.remote(), tally.total.remote()])
            bar.total = max(total, done) if total is not None else None
            bar.update(done - bar.n)
