"""How long a chain of steps still takes, from its usual durations and how fast it is here.

In: the usual seconds of each step, the steps as they begin and end, the share of the current step that
is done. Out: seconds left, None where a duration is not known. An estimate: nothing depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

_ENOUGH = 0.1  # of a step must be done before its rate says anything
_LONG_ENOUGH_S = 10.0  # a step's usual duration, to say how fast it is here


class TimeLeft:
    """The steps of `names`, in order. Every method is told the time, in seconds of one clock."""

    def __init__(self, names: Sequence[str], usual_s: Mapping[str, float]) -> None:
        self._waiting = list(names)
        self._usual_s = usual_s
        self._current: tuple[str, ...] = ()
        self._began = self._done_before = 0.0
        self._first: tuple[float, float] | None = None  # time and share when progress was first seen
        self._measured: dict[tuple[str, ...], float] = {}  # seconds of what ran here from its start

    def begin(self, names: Iterable[str], now: float, share: float) -> None:
        """The steps `names` start, at the same time; an earlier run has done `share` of them."""
        self._current = tuple(names)
        for name in self._current:
            self._waiting.remove(name)
        self._began, self._done_before, self._first = now, share, None

    def end(self, now: float) -> None:
        """The current steps have finished."""
        known = all(name in self._usual_s for name in self._current)
        if known and not self._done_before and self._usual(self._current) >= _LONG_ENOUGH_S:
            self._measured[self._current] = now - self._began

    def skip(self, name: str) -> None:
        """`name` was finished before."""
        self._waiting.remove(name)

    def left(self, now: float, share: float) -> float | None:
        """Seconds to the end of the chain; `share` of the current steps is done."""
        steps = [*self._current, *self._waiting]
        if any(step not in self._usual_s for step in steps):
            return None
        if share > self._done_before and self._first is None:
            self._first = now, share
        usual_s, elapsed_s = self._usual(self._current), now - self._began
        slowness = self._slowness()
        if self._first is not None and share - self._first[1] >= _ENOUGH:
            rate = (share - self._first[1]) / (now - self._first[0])
            here = (1 - share) / rate
            if not self._measured:
                slowness = (elapsed_s + here) / usual_s
        else:  # a step that takes longer than usual is taken to be nearly done
            expected_s = usual_s * slowness * (1 - self._done_before)
            here = max(expected_s - elapsed_s, expected_s / 10)
        return here + slowness * self._usual(self._waiting)

    def _usual(self, names: Iterable[str]) -> float:
        return sum(self._usual_s[name] for name in names)

    def _slowness(self) -> float:
        """How many times longer than usual the measured steps took."""
        usual_s = sum(map(self._usual, self._measured))
        return sum(self._measured.values()) / usual_s if usual_s else 1.0


def in_words(seconds: float) -> str:
    """A duration for people: 45 s, 3 min 10 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def about(seconds: float) -> str:
    """A duration that is an estimate, in minutes."""
    return "less than a minute" if seconds < 45 else f"about {round(seconds / 60)} min"
