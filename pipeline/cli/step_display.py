"""What a chain of steps shows while it runs: step n of N, how much of it is done, the time left.

In: the steps as they begin and end. Out: on a terminal one line, drawn again each second; elsewhere a
line when a step begins and ends, and one a minute between. Warnings of this project appear in full.
Everything else that is printed meanwhile is for a log file (`redirected_output`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text as Styled

from pipeline.base.repeating import repeating
from pipeline.cli.steps import PipelineStep
from pipeline.cli.time_left import TimeLeft, about, in_words
from pipeline.storage.logs import PACKAGES

_REFRESH_S = 1.0
_REFRESH_IN_LOGS_S = 60.0


class StepDisplay:
    """Shows the steps of a chain on `stream`."""

    def __init__(
        self, stream: TextIO | None, steps: Sequence[PipelineStep], usual_s: Mapping[str, float]
    ) -> None:
        """`usual_s`: seconds by step, for the time left; it is not shown if one is missing. None as a
        stream shows nothing."""
        self._console = Console(file=stream, quiet=stream is None)
        self._titles = {
            step.name: f"step {n} of {len(steps)}, {step.name}" for n, step in enumerate(steps, 1)
        }
        self._time_left = TimeLeft([step.name for step in steps], usual_s)

    @contextmanager
    def running(self, *steps: PipelineStep) -> Iterator[None]:
        """Show `steps`, which run at the same time, during the block, and then how long they took."""
        began = time.monotonic()
        self._time_left.begin([step.name for step in steps], began, _share(steps))
        with Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ) as live:
            at_terminal = self._console.is_terminal
            interval_s = _REFRESH_S if at_terminal else _REFRESH_IN_LOGS_S
            with repeating(partial(self._draw, steps, live), interval_s, at_end=at_terminal):
                yield
        ended = time.monotonic()
        self._time_left.end(ended)
        self._print(f"{self._title(steps)}: done in {in_words(ended - began)}")

    def finished_before(self, step: PipelineStep) -> None:
        """Say that `step` is skipped."""
        self._time_left.skip(step.name)
        self._print(f"{self._titles[step.name]}: finished before, {step.output}")

    @contextmanager
    def warnings(self) -> Iterator[None]:
        """Show warnings of this project's packages during the block."""
        handler = _WarningHandler(self._print)
        for package in PACKAGES:
            logging.getLogger(package).addHandler(handler)
        try:
            yield
        finally:
            for package in PACKAGES:
                logging.getLogger(package).removeHandler(handler)

    def _draw(self, steps: Sequence[PipelineStep], live: Live) -> None:
        if not self._console.is_terminal:
            self._print(self._state(steps))
            return
        live.update(Styled(self._state(steps), no_wrap=True, overflow="ellipsis"), refresh=True)

    def _state(self, steps: Sequence[PipelineStep]) -> str:
        share, summary = _share(steps), steps[0].summary
        left_s = self._time_left.left(time.monotonic(), share)
        state = [f"{100 * share:.0f} % done"] if share else [summary] if summary else []
        state += [f"{about(left_s)} left"] if left_s is not None else []
        return f"{self._title(steps)}: {'; '.join(state)}" if state else self._title(steps)

    def _title(self, steps: Sequence[PipelineStep]) -> str:
        return " and ".join(self._titles[step.name] for step in steps)

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)


def _share(steps: Sequence[PipelineStep]) -> float:
    """How much of the steps is done: the mean."""
    return sum(step.share() for step in steps) / len(steps)


class _WarningHandler(logging.Handler):
    """Gives the message of each warning and error to a function."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(f"! {record.getMessage()}")
