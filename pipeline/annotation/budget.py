"""The end of a run whose budget is used up: no new batch begins, and those in progress are finished.

In: hours since the start, GPU-hours. Out: which budget is used up. The progress actor then lets no batch
begin (progress.py); when none is in progress, `StopWhenDrained` ends the execution of Ray Data.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray.data._internal.execution.execution_callback import ExecutionCallback

from pipeline.annotation.annotator_actor import AnnotationError
from pipeline.annotation.progress import RunProgress
from pipeline.base.config import AnnotateConfig

logger = logging.getLogger(__name__)

_TOOLS_INTERVAL_S = 10.0  # between two looks at the replicas


class BudgetExhaustedError(AnnotationError):
    """The run has stopped because its budget is used up. The rows are whole; the same command goes on."""

    exit_code = 3


def exhausted_budget(config: AnnotateConfig, hours: float, gpu_hours: float) -> str | None:
    """The budget that is used up, as in "max_hours = 2"; None if there is time left."""
    for name, budget, used in (
        ("max_hours", config.max_hours, hours),
        ("max_gpu_hours", config.max_gpu_hours, gpu_hours),
    ):
        if budget is not None and used >= budget:
            return f"{name} = {budget:g}"
    return None


class BudgetWatch:
    """Watches what a run has used, and stops it when its budget is used up."""

    def __init__(self, config: AnnotateConfig, began: float) -> None:
        """`began` is when this start began, by time.monotonic."""
        self._config, self._began = config, began
        gpus = {tool: config.tools.of(tool).deployment.gpus for tool in config.method.tools}
        self._gpus = {tool: number for tool, number in gpus.items() if number}
        self._looked_at_tools = self._held_by_tools = 0.0
        self.gpu_hours = 0.0
        self.exhausted: str | None = None

    def begin(self, progress: Any, applications: Mapping[str, str], drained: threading.Event) -> None:
        """The run begins; `drained` ends it."""
        self._progress, self._applications, self._drained = progress, applications, drained

    def require_hours(self) -> None:
        """Raise BudgetExhaustedError if max_hours is used up before the run has begun."""
        self.exhausted = exhausted_budget(self._config, (time.monotonic() - self._began) / 3600, 0.0)
        if self.exhausted is not None:
            raise BudgetExhaustedError(
                f"stopped: {self.exhausted} is used up, while the tools were starting. "
                "Nothing was annotated; the same command goes on"
            )

    def look(self, state: RunProgress) -> None:
        """Look at the run once."""
        now = time.monotonic()
        if self._gpus and now - self._looked_at_tools >= _TOOLS_INTERVAL_S:
            self._looked_at_tools = now
            self._count_tools()
        self.gpu_hours = round(state.gpu_hours, 4)
        exhausted = exhausted_budget(self._config, (now - self._began) / 3600, state.gpu_hours)
        if exhausted is not None and self.exhausted is None:
            self.exhausted = exhausted
            logger.info("%s is used up: %d batches in progress are finished", exhausted, state.batches)
            self._progress.stop.remote()
        elif self.exhausted is not None and not state.batches and (state.refused or not state.is_whole):
            self._drained.set()  # a repeated batch is counted again, so a refused one says more

    def _count_tools(self) -> None:
        from tools_service.serving.deployment import running_replicas

        try:
            running = running_replicas(self._applications)
        except Exception:  # Serve's controller may be restarting: what the tools held before counts on
            logger.warning("the tools' replicas cannot be counted now", exc_info=True)
        else:
            self._held_by_tools = sum(gpus * running[tool] for tool, gpus in self._gpus.items())
        self._progress.tools_hold.remote(self._held_by_tools)


_drained = threading.Event()  # of the one run of this process


@contextmanager
def drained_run() -> Iterator[threading.Event]:
    """The event that ends the execution of Ray Data during the block."""
    _drained.clear()
    try:
        yield _drained
    finally:
        _drained.clear()


class StopWhenDrained(ExecutionCallback):
    """A callback of Ray Data (DataContext.custom_execution_callback_classes), on the driver.

    Ray Data makes it, without arguments. An exception in a step of the execution ends it, also while all
    actors wait for a node.
    """

    def on_execution_step(self, executor: Any) -> None:
        """Raise BudgetExhaustedError if the run is drained."""
        if _drained.is_set():
            raise BudgetExhaustedError("the budget is used up")
