"""What an annotator's model does with its time: works, waits for tools, or waits for texts.

In: the phases of the batches, as they begin and end. Out: seconds by state since they were last taken. Of
batches that overlap, the busiest counts: the model waits for tools only while no batch uses it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Phase = Literal["model", "tools", "other"]
# Of a batch, the busiest first.
PHASES: tuple[Phase, ...] = ("model", "tools", "other")
NO_BATCH = "texts"  # the state of an annotator that waits for its next batch
_STATES: tuple[str, ...] = (*PHASES, NO_BATCH)


class UtilizationClock:
    """Counts the seconds of each state. Phases may begin and end in any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds. Counting begins with the first phase."""
        self._clock = clock
        self._lock = threading.Lock()
        self._active: Counter[Phase] = Counter()
        self._changed: float | None = None
        self._seconds = dict.fromkeys(_STATES, 0.0)

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """A batch is in this phase during the block."""
        self._change(name, 1)
        try:
            yield
        finally:
            self._change(name, -1)

    def take(self) -> dict[str, float]:
        """The seconds of each state, PHASES and NO_BATCH, since the last call."""
        with self._lock:
            self._count()
            seconds = self._seconds
            self._seconds = dict.fromkeys(_STATES, 0.0)
        return seconds

    def _change(self, name: Phase, number: int) -> None:
        with self._lock:
            self._count()
            self._active[name] += number

    def _count(self) -> None:
        """Add the time since the last change to the state that it was in."""
        now = self._clock()
        if self._changed is not None:
            state = next(
                (phase for phase in PHASES if self._active[phase]), NO_BATCH
            )
            self._seconds[state] += now - self._changed
        self._changed = now
