"""The standard streams of a command: a reader that has gone, a full disk, other encodings, no input.

In: the function that runs a command. Out: its exit code; nothing that hinders its output becomes a
traceback. Results are written by the commands themselves.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Callable
from typing import BinaryIO

from tools_service.base.errors import ConfigurationError

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def run_command(run: Callable[[], int], program: str) -> int:
    """Return the exit code of `run`; 1 if its output has no reader (`| head`) or no space."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal cannot show must not end a run
            stream.reconfigure(errors="backslashreplace")
    try:
        code = run()
        if sys.stdout is not None:  # None: it was closed by the caller
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        _discard_output()
        return 1
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        print(f"{program}: cannot write: {error}; make room and give the command again", file=sys.stderr)
        _discard_output()
        return 1


def standard_input() -> BinaryIO:
    """Return standard input; ConfigurationError if the caller closed it."""
    if sys.stdin is None:
        raise ConfigurationError("standard input is closed: give a file or a pipe to read from")
    return sys.stdin.buffer


def json_must_be_ascii() -> bool:
    """Whether standard output cannot show every character; escapes of Python would break JSON."""
    encoding = getattr(sys.stdout, "encoding", None)
    return encoding is not None and codecs.lookup(encoding).name != "utf-8"


def _discard_output() -> None:
    """What is still buffered goes nowhere, so that Python does not fail when it flushes at its end."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
