"""Processes of a round: their ends, what they say, what they leave."""

from __future__ import annotations

import pytest

from bench.faults.commands import Command

pytestmark = pytest.mark.unit

SAID = "print('python -m pipeline merge: /x: cannot write: No space left on device')"
TRACEBACK = "print('Traceback (most recent call last):')"


@pytest.mark.parametrize(
    ("code", "complaints"),
    [
        (f"{SAID}; raise SystemExit(1)", []),
        (f"{SAID}; raise SystemExit(2)", []),
        (SAID, ["exit code 0"]),
        (f"{SAID}; raise SystemExit(3)", ["exit code 3"]),
        (f"{TRACEBACK}; {SAID}; raise SystemExit(1)", ["a traceback"]),
        ("raise SystemExit(1)", ["no short message"]),
        (f"{SAID}; print('more\\n' * 3); raise SystemExit(1)", ["no short message"]),
        ("print('python -m pipeline merge: no'); raise SystemExit(1)", ["a message without No space left"]),
    ],
)
def test_a_refusal_is_one_message_and_an_exit_code(code: str, complaints: list[str]) -> None:
    with Command(["-c", code]) as command:
        command.wait()
        found = command.complaint("No space left")
    assert len(found) == len(complaints)
    assert all(text.startswith(start) for text, start in zip(found, complaints, strict=True))


def test_what_a_command_started_survives_it_and_is_ended() -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])"
    with Command(["-c", code]) as command:
        command.wait()
        assert len(command.survivors(patience_s=0.0)) == 1
    assert not command.survivors()
