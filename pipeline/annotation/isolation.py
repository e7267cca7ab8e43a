"""Isolates texts that fail or crash a process from the rest of a run.

In: failed texts. Out: whether the run must stop; and the lock with which an actor isolates a text.
method/annotator.py turns exceptions into failed texts. But Ray restarts an actor that died with its batch
forever. So a batch that actors died with is split, and a text that actors died with alone has failed. The
progress actor counts failures and crashes, because it outlives the annotating actors. No Ray here.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from pipeline.base.records import reason_kind

MAX_CRASHES = 2  # crashes tolerated per batch and per text; a single crash may be a hardware fault
MIN_TEXTS = 1_000
"""The share of failed texts is computed over at least this many texts: a few texts say little."""
_MAX_SHOWN = 5

FailedText = tuple[int, str]  # id of a failed text, and the reason


class FailureBudget:
    """Counts failed texts by kind of reason, and decides whether there are too many."""

    def __init__(self, max_share: float, failed: Iterable[FailedText] = ()) -> None:
        """`max_share` is the largest share allowed; `failed` are the texts of earlier sessions."""
        self._max_share = max_share
        self._ids: set[int] = set()
        self._kinds: Counter[str] = Counter()
        self._examples: defaultdict[str, dict[int, str]] = defaultdict(dict)
        self.add(failed)

    def add(self, failed: Iterable[FailedText]) -> None:
        """Count each text once: Ray may repeat a task."""
        for text_id, reason in failed:
            if text_id in self._ids:
                continue
            self._ids.add(text_id)
            kind = reason_kind(reason)
            self._kinds[kind] += 1
            if len(self._examples[kind]) < _MAX_SHOWN:
                self._examples[kind][text_id] = reason

    def used(self, texts: int) -> float:
        """Failed texts over those allowed after `texts` texts; the run stops above 1."""
        failed, allowed = len(self._ids), self._allowed(texts)
        return failed / allowed if allowed else float(failed)

    def verdict(self, texts: int) -> str | None:
        """Why to stop after `texts` texts, or None."""
        failed = len(self._ids)
        if failed <= self._allowed(texts):
            return None
        kinds = []
        for kind, number in self._kinds.most_common(_MAX_SHOWN):
            examples = self._examples[kind]
            reason, ids = next(iter(examples.values())), ", ".join(map(str, examples))
            kinds.append(f"{number:,} x {reason} (texts {ids})")
        return (
            f"{failed:,} of {texts:,} texts failed, more than max_failed_share = {self._max_share:g} allows "
            f"(counted over at least {MIN_TEXTS:,} texts): {'; '.join(kinds)}"
        )

    def _allowed(self, texts: int) -> float:
        return self._max_share * max(texts, MIN_TEXTS)


class ReadWriteLock:
    """Shared and exclusive access for the tasks of one event loop."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._readers = 0

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Access together with other shared holders."""
        async with self._changed:
            self._readers += 1
        try:
            yield
        finally:
            async with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Access without any other holder: waits for them, and others wait meanwhile."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._readers)
            yield
