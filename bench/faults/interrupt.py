"""Runs a command of the pipeline, and sends it a signal before its n-th change of a folder.

    python -m bench.faults.interrupt FOLDER NUMBER SIGNAL PAUSE_S COMMAND [OPTIONS]

A change is a file or folder in FOLDER that this process creates, opens to write, renames or removes. So every
state in which a crash can leave the folder is reached, however short it lasts. The signal comes PAUSE_S
seconds after that moment, or right before the change if it is 0. Number 0: no signal. The number of all
changes is printed last. Changes by Arrow's own code are not counted.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from pipeline.cli.main import main as run_command

CHANGES = "changes of the folder:"
_EVENTS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink", "open")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Interruption:
    """An audit hook that counts the changes."""

    def __init__(self, folder: str, number: int, sign: signal.Signals, pause_s: float) -> None:
        self.changes = 0
        self._folder, self._number, self._sign, self._pause_s = folder, number, sign, pause_s

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS or not self._path(event, arguments).startswith(self._folder):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITING):
            return
        self.changes += 1
        if self.changes != self._number:
            return
        if self._pause_s:
            threading.Timer(self._pause_s, self._send).start()
        else:
            self._send()

    def _path(self, event: str, arguments: tuple[Any, ...]) -> str:
        """The absolute path of a change, "" if it has none."""
        if not isinstance(arguments[0], str | bytes | os.PathLike):
            return ""
        path, folder = os.fsdecode(arguments[0]), arguments[-1]
        if event in ("os.remove", "os.rmdir", "os.mkdir") and isinstance(folder, int) and folder > 0:
            path = f"/proc/self/fd/{folder}/{path}"  # from shutil.rmtree
        return os.path.realpath(path)

    def _send(self) -> None:
        os.kill(os.getpid(), self._sign)


def main(argv: list[str]) -> int:
    """The exit code of the command."""
    folder, number, sign, pause_s, *command = argv
    hook = Interruption(os.path.realpath(folder), int(number), signal.Signals[sign], float(pause_s))
    sys.addaudithook(hook)
    code = run_command(command)
    print(CHANGES, hook.changes, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
