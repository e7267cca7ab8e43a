"""Tools that start while the annotating actors load their models.

In: the names of Serve applications that are being deployed. Out: for the actors, through the progress
actor, whether all run, or why one cannot. An actor waits for the tools before its first batch, so that no
call is lost. The driver watches: it alone may ask Serve's controller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.base.repeating import repeating

_POLL_S = 0.2


@contextmanager
def watched_start(applications: Collection[str], progress: Any) -> Iterator[None]:
    """Tell the `progress` actor, during the block, when all `applications` run or that one cannot start."""
    watch = _Watch(applications, progress)
    with repeating(watch.look, _POLL_S, at_end=False):
        yield


async def tools_problem(progress: Any) -> str:
    """Wait until all tools run: then an empty string. Otherwise why one of them cannot start."""
    while (problem := await progress.tools_problem.remote()) is None:
        await asyncio.sleep(_POLL_S)
    return str(problem)


class _Watch:
    def __init__(self, applications: Collection[str], progress: Any) -> None:
        self._applications, self._progress, self._ended = applications, progress, False

    def look(self) -> None:
        """Look once, and not again after the start has ended."""
        from tools_service.serving.deployment import have_started

        if self._ended:
            return
        problem = ""
        try:
            self._ended = have_started(self._applications)
        except Exception as error:  # whatever it is, the actors must not wait forever
            self._ended, problem = True, str(error) or type(error).__name__
        if self._ended:
            self._progress.tools_ended_start.remote(problem)
