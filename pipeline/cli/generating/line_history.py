"""Line editing with a history that is kept in a file (readline).

In: lines that are typed. Out: the lines, and a file below $XDG_STATE_HOME. A history that cannot be kept is
said once, and hinders nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_MAX_LINES = 1_000


def history_file() -> Path:
    """Where the lines are kept: a state file in the sense of the XDG base directories."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    folder = state if state.is_absolute() else Path("~/.local/state").expanduser()
    return folder / "toolformer" / "generate_history"


class LineHistory:
    """Reads lines from the terminal, with the history of `file`."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        try:
            import readline
        except ImportError:  # a Python that was built without it
            self._stop("this Python has no readline")
            return
        self._readline = readline
        readline.clear_history()
        readline.set_history_length(_MAX_LINES)
        if file is None:
            return
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.touch(mode=0o600)
            readline.read_history_file(file)
        except OSError as error:
            self._stop(str(error))

    def read(self, prompt: str) -> str:
        """The next line. Raises EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C."""
        if self._file is None:
            return input(prompt)
        before = self._readline.get_current_history_length()
        line = input(prompt)
        new = self._readline.get_current_history_length() - before  # 0 for the line before, once more
        if new > 0:
            try:
                self._readline.append_history_file(new, self._file)
            except OSError as error:
                self._stop(str(error))
        return line

    def _stop(self, problem: str) -> None:
        self._file = None
        print(f"! the history of lines is not kept: {problem}", file=sys.stderr)
