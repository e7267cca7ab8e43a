"""The commands of a round as processes: start, wait, end, and read what they said.

In: arguments and an environment. Out: exit code and output. A command that does not end in time is a
FaultError; what it leaves behind (processes) is a sentence for the round's problems.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

from bench.faults.interrupt import CHANGES
from cluster.local import ROOT

TIMEOUT_S = 300.0
_PROGRAM = re.compile(r"^(?:interrupt|python -m pipeline) \w+: ", re.MULTILINE)
_MAX_LINES = 3


class FaultError(Exception):
    """A round could not be carried out, or a command hangs or fails for ever."""


class Command:
    """A process with its own session, so that whatever it starts can be found."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**(environment or os.environ), "OMP_NUM_THREADS": "1"},
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    @classmethod
    def interrupted(
        cls,
        folder: Path,
        command: Sequence[str],
        number: int = 0,
        sign: signal.Signals = signal.SIGKILL,
        pause_s: float = 0.0,
        environment: Mapping[str, str] | None = None,
    ) -> Command:
        """A command of the pipeline that gets a signal at its change `number` of `folder`."""
        options = [str(folder), str(number), sign.name, str(pause_s)]
        return cls(["-m", "bench.faults.interrupt", *options, *command], environment)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for `condition` or the end of the process. FaultError after TIMEOUT_S."""
        until = time.monotonic() + TIMEOUT_S
        while not self.ended and not condition():
            if time.monotonic() > until:
                raise FaultError(f"not {what} after {TIMEOUT_S:.0f} s: {self.last_line()}")
            time.sleep(0.02)

    def wait(self) -> int:
        """The exit code. FaultError after TIMEOUT_S."""
        try:
            return self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise FaultError(f"hangs: {self.last_line()}") from error

    def wait_until_stopped(self) -> bool:
        """Whether SIGSTOP has stopped the process; False if it has ended."""
        self.wait_until(lambda: self._status() == psutil.STATUS_STOPPED, "stopped")
        return not self.ended

    def _status(self) -> str:
        with suppress(psutil.NoSuchProcess):
            return str(psutil.Process(self.process.pid).status())
        return str(psutil.STATUS_DEAD)

    def resume(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def output(self) -> str:
        """All that it printed."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def last_line(self) -> str:
        """The last line it printed."""
        lines = [line for line in self.output().splitlines() if line.strip() and CHANGES not in line]
        return lines[-1] if lines else ""

    def changes(self) -> int:
        """The number of changes that `interrupted` counted, 0 if it was killed."""
        found = re.findall(rf"^{CHANGES} (\d+)$", self.output(), re.MULTILINE)
        return int(found[-1]) if found else 0

    def message(self) -> str:
        """What a command that failed told the user, without the program's name; "" of another one."""
        if self.process.poll() in (0, -signal.SIGKILL):
            return ""
        *before, message = _PROGRAM.split(self.output())
        return message.partition(CHANGES)[0].strip() if before else self.last_line()

    def complaint(self, *expected: str) -> list[str]:
        """What is wrong with the end of a command that had to fail: its exit code, or its message.

        The message has a few lines, no traceback, and one of the `expected` words.
        """
        code, output, problems = self.process.poll(), self.output(), []
        if code not in (1, 2):
            return [f"exit code {code}"]
        if "Traceback (most recent call last)" in output:
            problems.append(f"a traceback: {self.last_line()[:300]}")
        elif not _PROGRAM.search(output) or len(self.message().splitlines()) > _MAX_LINES:
            problems.append(f"no short message: {output[-300:]!r}")
        elif not any(word in self.message() for word in expected):
            problems.append(f"a message without {' or '.join(expected)}: {self.message()[:300]!r}")
        return problems

    def survivors(self, patience_s: float = 5.0) -> list[str]:
        """What the ended command has left running after some seconds, by name."""
        until = time.monotonic() + patience_s
        while (found := self._session()) and time.monotonic() < until:
            time.sleep(0.1)
        return found

    def _session(self) -> list[str]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                ours = os.getsid(process.pid) == self.process.pid and process.pid != self.process.pid
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.name())
        return found

    def close(self) -> None:
        """End the process and all that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()
