"""What a user sees of a run: one line on a terminal, or a line in the log every half minute.

In: the state of the progress actor. Out: texts done of those expected (with ~ while that is an estimate),
texts a second and the time left by the last minutes, actors ready. The texts of batches in progress count
by the share of their work that is done, so that the line moves inside a batch. Also progress.json.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from tqdm import tqdm

from pipeline.annotation.progress import RunProgress
from pipeline.base.config import RayConfig
from pipeline.base.repeating import repeating
from pipeline.storage.expected_texts import ExpectedTexts
from tools_service.base.files import OutputError

logger = logging.getLogger(__name__)

_REFRESH_S = 0.5
_REFRESH_IN_LOGS_S = 30.0
_SPEED_OVER_S = 300.0
_LINE = "annotate: {desc}"
_LINE_WITH_BAR = "annotate:{percentage:3.0f}%|{bar:20}| {desc}"


@contextmanager
def progress_line(
    progress: Any, resources: RayConfig, folder: Path, watch: Callable[[RunProgress], None]
) -> Iterator[None]:
    """Show the state of the progress actor during the block, write what is expected to `folder`, and tell
    `watch` the state twice a second."""
    with tqdm(bar_format=_LINE, disable=None) as bar:
        line = _Line(progress, resources, folder, bar, watch)
        with repeating(line.update, _REFRESH_S):
            yield
        line.log()


class Speed:
    """Texts a second over the last minutes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, float]] = deque()

    def add(self, texts: float) -> None:
        """So many texts are done now."""
        now = self._clock()
        self._seen.append((now, texts))
        while self._seen[0][0] < now - _SPEED_OVER_S:
            self._seen.popleft()

    def per_s(self) -> float | None:
        """None until texts are done."""
        (began, before), (now, texts) = self._seen[0], self._seen[-1]
        return (texts - before) / (now - began) if texts > before and now > began else None


def progress_text(state: RunProgress, texts: float, per_s: float | None, resources: RayConfig) -> str:
    """The state in words; `texts` are done, with shares of batches."""
    expected = state.expected
    parts = [f"{texts:,.0f} texts"]
    if expected is not None:
        about = "~" if expected.is_estimate else ""
        parts = [f"{texts:,.0f} of {about}{max(expected.texts, state.done):,} texts"]
    if per_s is not None:
        parts.append(f"{per_s:.3g} texts/s")
        if expected is not None and texts < expected.texts:
            about = "about " if expected.is_estimate else ""
            parts.append(f"{about}{tqdm.format_interval((expected.texts - texts) / per_s)} left")
    most = f"up to {resources.max_actors}" if resources.max_actors is not None else f"{resources.actors}"
    loading = f", {state.actors - state.ready} loading" if state.actors > state.ready else ""
    return ", ".join([*parts, f"{state.ready} of {most} actors{loading}"])


@dataclass(slots=True)
class _Line:
    progress: Any
    resources: RayConfig
    folder: Path
    bar: tqdm[Any]
    watch: Callable[[RunProgress], None]
    speed: Speed = field(default_factory=Speed)
    written: ExpectedTexts | None = None
    texts: float = 0.0
    text: str = ""
    logged: float = field(default_factory=time.monotonic)

    def update(self) -> None:
        state: RunProgress = ray.get(self.progress.progress.remote())
        self.watch(state)
        # A batch that is lost with its actor takes its share along; the line does not go back.
        self.texts = max(self.texts, state.done + state.begun)
        if state.expected is not None and not state.expected.is_estimate:
            self.texts = max(float(state.done), min(self.texts, state.expected.texts))
        if state.ready:  # loading models is not a speed
            self.speed.add(self.texts)
        per_s = self.speed.per_s() if state.ready else None
        self.text = progress_text(state, self.texts, per_s, self.resources)
        self._draw(state.expected)
        if state.expected not in (None, self.written):
            self.written = state.expected
            with suppress(OutputError):  # the run itself says that a disk is full
                self.written.write(self.folder)

    def _draw(self, expected: ExpectedTexts | None) -> None:
        if self.bar.disable:
            if time.monotonic() - self.logged >= _REFRESH_IN_LOGS_S:
                self.log()
            return
        if expected is not None:
            self.bar.bar_format, self.bar.total = _LINE_WITH_BAR, max(expected.texts, self.texts, 1)
        self.bar.n = self.texts
        self.bar.set_description_str(self.text)

    def log(self) -> None:
        """Write the line to the log, unless a terminal shows it."""
        if self.bar.disable:
            self.logged = time.monotonic()
            logger.info("annotate: %s", self.text)
