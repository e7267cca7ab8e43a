"""What is seen of a chain of steps: its place, its progress, warnings, and nothing else."""

from __future__ import annotations

import io
import logging
import os
import pty
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.cli.step_display import StepDisplay
from pipeline.cli.steps import PipelineStep
from tools_service.base.ownership import OutputKind
from tools_service.base.settings import Frozen

pytestmark = pytest.mark.unit
KIND = OutputKind(name="a small step's output", marks={}, paths=())


def step(name: str, share: float = 0.0) -> PipelineStep:
    return PipelineStep(
        name=name,
        config=Frozen(),
        output=Path("runs") / "[x]" / name,
        kind=KIND,
        run=lambda: None,
        summary=f"{name} does it",
        share=lambda: share,
    )


STEPS = [step("one"), step("two"), step("three", share=0.25)]


def test_a_pipe_gets_a_line_at_each_start_and_end() -> None:
    stream = io.StringIO()
    display = StepDisplay(stream, STEPS, {"one": 100.0, "two": 1.0, "three": 200.0})
    display.finished_before(STEPS[0])
    with display.running(STEPS[1]):
        pass
    with display.running(STEPS[2]):
        pass
    assert stream.getvalue().splitlines() == [
        "step 1 of 3, one: finished before, runs/[x]/one",
        "step 2 of 3, two: two does it; about 3 min left",
        "step 2 of 3, two: done in 0 s",
        "step 3 of 3, three: 25 % done; about 2 min left",
        "step 3 of 3, three: done in 0 s",
    ]


def test_steps_at_the_same_time_have_one_line() -> None:
    stream = io.StringIO()
    display = StepDisplay(stream, STEPS, {"one": 100.0, "two": 20.0, "three": 60.0})
    display.finished_before(STEPS[0])
    with display.running(STEPS[1], STEPS[2]):
        pass
    assert stream.getvalue().splitlines()[1:] == [
        "step 2 of 3, two and step 3 of 3, three: 12 % done; about 1 min left",
        "step 2 of 3, two and step 3 of 3, three: done in 0 s",
    ]


def test_without_known_durations_there_is_no_time_left() -> None:
    stream = io.StringIO()
    with StepDisplay(stream, STEPS, {}).running(STEPS[0]):
        pass
    assert stream.getvalue().splitlines()[0] == "step 1 of 3, one: one does it"


def test_a_failed_step_is_not_called_done() -> None:
    stream = io.StringIO()
    with pytest.raises(RuntimeError), StepDisplay(stream, STEPS, {}).running(STEPS[0]):
        raise RuntimeError
    assert "done in" not in stream.getvalue()


def test_a_terminal_has_one_line_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream, StepDisplay(stream, STEPS, {}).running(STEPS[2]):
        pass
    written = b""
    with suppress(OSError):  # at the end, because nobody has the other side open
        while part := os.read(master, 4096):
            written += part
    os.close(master)
    shown = written.decode()
    assert "25 % done" in shown
    assert "done in 0 s" in shown.split("\x1b[2K")[-1]  # after the line was erased


def test_warnings_of_this_project_are_shown_and_nothing_else() -> None:
    stream = io.StringIO()
    display = StepDisplay(stream, STEPS, {})
    with display.warnings():
        logging.getLogger("pipeline.x").warning("%s is [lost]", "a text")
        logging.getLogger("pipeline.x").info("all is well")
        logging.getLogger("another").warning("mind this")
    logging.getLogger("pipeline.x").warning("later")
    assert stream.getvalue() == "! a text is [lost]\n"


def test_a_closed_stream_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with StepDisplay(None, STEPS, {}).running(STEPS[0]):
        pass
    assert capfd.readouterr() == ("", "")
