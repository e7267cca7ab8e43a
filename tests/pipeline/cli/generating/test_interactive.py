"""The prompt loop: its commands, and one session over a real pseudo-terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from pipeline.base.inference_config import GenerateConfig
from pipeline.cli.generating.interactive import SETTINGS, InteractiveSession
from pipeline.cli.generating.line_history import LineHistory
from pipeline.inference.streaming import StreamingEngine
from tests.pipeline.cli.generating.typing_session import RepeatingEngine
from tests.pipeline.inference.test_generator import CALLS, PLAIN, PROMPT, Asks
from tests.pipeline.scripted import ScriptedModel

pytestmark = pytest.mark.unit

_PATIENCE_S = 40  # of a busy machine


class TypedLines(LineHistory):
    """Lines as if they were typed, then Ctrl-D."""

    def __init__(self, *lines: str) -> None:
        self._lines = iter(lines)

    def read(self, prompt: str) -> str:
        for line in self._lines:
            return line
        raise EOFError


def session(
    *lines: str, engine: object = None, with_trace: bool = False, **settings: object
) -> InteractiveSession:
    config = GenerateConfig.model_validate(settings)
    running = cast("StreamingEngine", engine or RepeatingEngine())
    return InteractiveSession(running, config, ("QA", "Calculator"), TypedLines(*lines), with_trace)


def replies(capsys: pytest.CaptureFixture[str], *lines: str, **settings: object) -> list[str]:
    session(*lines, **settings).run()
    return capsys.readouterr().out.splitlines()[1:-1]


def test_a_command_changes_a_setting_of_the_prompts_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    found = replies(capsys, "one", "/k 3", "two", "/k", "three", k=7)
    assert found == [" <one|k=7>", "/k 3", " <two|k=3>", "/k 7", " <three|k=7>"]


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("/date 2024-02-29", "/date 2024-02-29"),
        ("/date", "/date today"),
        ("/max-new-tokens 9", "/max-new-tokens 9"),
        ("/tools-off QA MT", "/tools-off QA MT"),
        ("/tools-off none", "/tools-off none"),
        ("/disabled on", "/disabled True"),
        ("/stop '\\n' Q:", "/stop '\\n' 'Q:'"),
        ("/k x", "! /k = 'x': must be a whole number"),
        ("/k -1", "! /k = '-1': must be at least 0"),
        ("/date tomorrow", "! /date = 'tomorrow': must be a date, YYYY-MM-DD"),
        ("/tools-off Abacus", "! /tools-off: no tool is called Abacus"),
        ("/stop 'open", "! No closing quotation"),
        ("/model x", "! no command /model; /help lists them"),
        ("/", "! no command /; /help lists them"),
    ],
)
def test_a_command_says_what_is_set_or_what_is_wrong(
    line: str, reply: str, capsys: pytest.CaptureFixture[str]
) -> None:
    [shown] = replies(capsys, line)
    assert shown.startswith(reply)


def test_a_tool_that_was_not_started_cannot_be_switched_on(capsys: pytest.CaptureFixture[str]) -> None:
    [shown] = replies(capsys, "/tools-off none", tools_off=("MT",))
    assert shown.startswith("! MT: off since the start, so not running;")


def test_help_and_settings_have_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    shown = "\n".join(replies(capsys, "/help"))
    settings = replies(capsys, "/settings")
    assert [line.split()[0].strip("/").replace("-", "_") for line in settings] == list(SETTINGS)
    assert all(f"  {line.split()[0]}  " in shown for line in settings)


def test_a_session_continues_prompts_with_tools_and_switches_them_off(
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = StreamingEngine(ScriptedModel("words", [PLAIN, CALLS + " 31."], max_positions=60), Asks())
    lines = (PROMPT, "/tools-off Calculator", PROMPT, "", PROMPT * 20, "/max-new-tokens 1", PROMPT)
    try:
        session(*lines, engine=engine, with_trace=True, k=2, max_failed_calls=1).run()
    finally:
        engine.close()
    captured = capsys.readouterr()
    assert " [Calculator(27 + 4) -> 31] 31.\n" in captured.out
    assert captured.out.count("[Calculator") == 1
    assert " thirty.\n" in captured.out
    assert "! the prompt 'The answer to 27 + 4 is" in captured.out
    assert "[ended by: --max-new-tokens]" in captured.out
    assert captured.err.count("trace of") == 4


class Keyboard:
    """The other end of the terminal of a process."""

    def __init__(self, terminal: int, pid: int) -> None:
        self._terminal = terminal
        self._stat = Path(f"/proc/{pid}/stat")
        self.shown = ""

    def interrupt(self) -> None:
        """Type Ctrl-C when the process waits: Python sees an earlier signal only at the next key.

        A process that sleeps once may wait for a page or a lock; one that waits for keys stays asleep.
        """
        end = time.monotonic() + _PATIENCE_S
        asleep = 0
        while asleep < 20 and self._stat.exists():
            assert time.monotonic() < end, "the process does not wait"
            state = self._stat.read_text().rpartition(")")[2].split()[0]
            asleep = asleep + 1 if state == "S" else 0
            time.sleep(0.01)
        self.type("\x03")

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def wait_for(self, text: str) -> None:
        """Read what the process shows until `text`, and forget it."""
        end = time.monotonic() + _PATIENCE_S
        while text not in self.shown:
            ready, _, _ = select.select([self._terminal], [], [], end - time.monotonic())
            assert ready, f"no {text!r} in {self.shown!r}"
            self.shown += os.read(self._terminal, 4096).decode()
        self.shown = self.shown.partition(text)[2]


@contextmanager
def typing(state: Path) -> Iterator[tuple[Keyboard, subprocess.Popen[bytes]]]:
    """A session in a process of its own, on a pseudo-terminal."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"XDG_STATE_HOME": str(state), "TERM": "dumb", "INPUTRC": "/dev/null"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.pipeline.cli.generating.typing_session"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=environment,
    )
    os.close(theirs)
    try:
        yield Keyboard(ours, process.pid), process
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_a_terminal_has_line_editing_history_and_ways_out(tmp_path: Path) -> None:
    with typing(tmp_path) as (keyboard, process):
        keyboard.wait_for("> ")
        keyboard.type("helo\x1b[Dl\r")  # left arrow
        keyboard.wait_for(" <hello|k=10>")
        keyboard.wait_for("> ")
        keyboard.type("wait\r")
        keyboard.wait_for(" begun")
        keyboard.interrupt()
        keyboard.wait_for("[interrupted]")
        keyboard.wait_for("> ")
        keyboard.type("\x1b[A\x1b[A!\r")  # up twice
        keyboard.wait_for(" <hello!|k=10>")
        keyboard.wait_for("> ")
        keyboard.type("not sent")
        keyboard.wait_for("not sent")
        keyboard.interrupt()
        keyboard.wait_for("> ")
        keyboard.type("\x04")
        assert process.wait(_PATIENCE_S) == 0
    file = tmp_path / "toolformer" / "generate_history"
    assert file.read_text().splitlines() == ["hello", "wait", "hello!"]
    assert file.stat().st_mode & 0o077 == 0
    with typing(tmp_path) as (keyboard, process):
        keyboard.wait_for("> ")
        keyboard.type("\x1b[A\r")
        keyboard.wait_for(" <hello!|k=10>")
        keyboard.wait_for("> ")
        keyboard.type("\x04")
        assert process.wait(_PATIENCE_S) == 0
