"""The progress line: its numbers, and that it never goes back."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from pipeline.annotation import progress_line
from pipeline.annotation.progress import RunProgress
from pipeline.annotation.progress_line import Speed, _Line, progress_text
from pipeline.base.config import RayConfig
from pipeline.storage.expected_texts import ExpectedTexts, read_expected

pytestmark = pytest.mark.unit

ESTIMATE = ExpectedTexts(texts=10_000, is_estimate=True)
TOTAL = ExpectedTexts(texts=2_000, is_estimate=False)


def test_the_speed_is_that_of_the_last_five_minutes() -> None:
    now = [0.0]
    speed = Speed(lambda: now[0])
    speed.add(1_000)  # of earlier sessions
    assert speed.per_s() is None
    now[0] = 100
    speed.add(1_050)
    assert speed.per_s() == 0.5
    now[0] = 390
    speed.add(1_340)
    assert speed.per_s() == 1.0  # from 100 to 390


def test_an_estimate_is_marked_and_time_left_comes_from_it() -> None:
    four, elastic = RayConfig(actors=4), RayConfig(actors=4, max_actors=32)
    state = RunProgress(64, None, actors=4)
    assert progress_text(state, 64, None, four) == "64 texts, 0 of 4 actors, 4 loading"
    state = RunProgress(1_000, ESTIMATE, actors=3, ready=3)
    assert progress_text(state, 1_000, 12.5, elastic) == (
        "1,000 of ~10,000 texts, 12.5 texts/s, about 12:00 left, 3 of up to 32 actors"
    )
    state = RunProgress(1_990, TOTAL, actors=4, ready=4)
    assert (
        progress_text(state, 1_990, 1.0, four) == "1,990 of 2,000 texts, 1 texts/s, 00:10 left, 4 of 4 actors"
    )
    assert progress_text(state, 2_000, 1.0, four) == "2,000 of 2,000 texts, 1 texts/s, 4 of 4 actors"


def line(tmp_path: Path, states: list[RunProgress], stream: io.StringIO, *, terminal: bool) -> _Line:
    bar = tqdm(bar_format=progress_line._LINE, file=stream, disable=not terminal, mininterval=0, ncols=100)
    progress = SimpleNamespace(progress=SimpleNamespace(remote=lambda: states.pop(0)))
    return _Line(progress, RayConfig(), tmp_path, bar, lambda state: None)


def test_it_moves_inside_a_batch_and_never_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of 64 texts gets half done and is lost with its actor; then it is done."""
    monkeypatch.setattr(progress_line.ray, "get", lambda value: value)
    states = [RunProgress(64, ESTIMATE, begun=begun, actors=1, ready=1) for begun in (0.0, 16.0, 32.0, 0.0)]
    states += [RunProgress(128, TOTAL, begun=1_990, actors=1, ready=1)]
    stream = io.StringIO()
    shown = line(tmp_path, states, stream, terminal=True)
    texts = []
    for _ in range(5):
        shown.update()
        texts.append(shown.texts)
    assert texts == [64, 80, 96, 96, 2_000]
    assert read_expected(tmp_path) == TOTAL
    written = stream.getvalue()
    for text in ("|", "80 of ~10,000 texts", "2,000 of 2,000 texts"):
        assert text in written


def test_without_a_terminal_a_line_is_logged_every_half_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress_line.ray, "get", lambda value: value)
    states = [RunProgress(done, TOTAL, actors=1, ready=1) for done in (10, 20, 30)]
    shown = line(tmp_path, states, io.StringIO(), terminal=False)
    with caplog.at_level(logging.INFO):
        shown.update()
        shown.logged -= 31
        shown.update()
        shown.update()
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("annotate: 20 of 2,000 texts, ")
