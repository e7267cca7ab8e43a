"""What a run does about texts that break it: how many may fail, and which of them kill the process.

An exception is isolated where it happens (annotator.py). Here is what needs the whole run's view, kept by the
tally (progress.py), which outlives the annotating actors: the share of failed texts, above which the fault is
hardly theirs; and which texts an actor was busy with when it died. Ray starts such an actor again, and its
batch with it, for ever; so a batch that actors have died with is taken apart, and a text that they die with
while it is alone has failed. Nothing here knows Ray.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from pipeline.base.records import reason_kind

MAX_CRASHES = 2
"""That an actor may die with a batch, then with a text alone: once may be the machine's fault."""
LEAST_TEXTS = 1_000
"""The share of failed texts is one of so many at least: a few of the first ones say little."""
_EXAMPLES = 5
_KINDS = 5

Failed = tuple[int, str]
"""A failed text's id, and the reason."""


class FailureBudget:
    """Failed texts, by kind of reason, and whether there are too many."""

    def __init__(self, most: float, failed: Iterable[Failed] = ()) -> None:
        """At most the share `most`; `failed` are those of earlier sessions."""
        self._most = most
        self._ids: set[int] = set()
        self._kinds: Counter[str] = Counter()
        self._examples: defaultdict[str, dict[int, str]] = defaultdict(dict)
        self.add(failed)

    def add(self, failed: Iterable[Failed]) -> None:
        """Count those that are new: a task may be repeated."""
        for text_id, reason in failed:
            if text_id in self._ids:
                continue
            self._ids.add(text_id)
            kind = reason_kind(reason)
            self._kinds[kind] += 1
            if len(self._examples[kind]) < _EXAMPLES:
                self._examples[kind][text_id] = reason

    def verdict(self, texts: int) -> str | None:
        """Of `texts` so far: why to stop, if too many failed."""
        failed = len(self._ids)
        if failed <= self._most * max(texts, LEAST_TEXTS):
            return None
        kinds = "; ".join(self._said(kind, number) for kind, number in self._kinds.most_common(_KINDS))
        return (
            f"{failed:,} of {texts:,} texts failed, more than max_failed_share = {self._most:g} allows (of "
            f"{LEAST_TEXTS:,} texts at least): {kinds}"
        )

    def _said(self, kind: str, number: int) -> str:
        examples = self._examples[kind]
        return f"{number:,} x {next(iter(examples.values()))} (texts {', '.join(map(str, examples))})"


class CrashTracker:
    """What has been begun and not ended: whoever did it died, or is at it."""

    def __init__(self) -> None:
        self._begun: Counter[tuple[int, ...]] = Counter()

    def begin(self, texts: Sequence[int]) -> int:
        """Note that these texts are begun together; how often they were before, without an end."""
        self._begun[tuple(texts)] += 1
        return self._begun[tuple(texts)] - 1

    def end(self, texts: Sequence[int]) -> None:
        """They are done, or failed in a way that was noticed."""
        self._begun.pop(tuple(texts), None)


class ReadWriteLock:
    """Work that may go on side by side, and work that must be alone, on one event loop."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._busy = 0

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Beside others."""
        async with self._changed:
            self._busy += 1
        try:
            yield
        finally:
            async with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Once the others are done; those that come meanwhile wait."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._busy)
            yield
