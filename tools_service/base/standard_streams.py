"""The standard streams of a command: a reader that has gone, a full disk, other encodings, no input.

In: the function that runs a command. Out: its exit code; nothing that hinders its output becomes a
traceback. `redirected_output` keeps the noise of libraries and child processes from the terminal.
Results are written by the commands themselves.
"""

from __future__ import annotations

import codecs
import errno
import fcntl
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from tools_service.base.errors import ConfigurationError
from tools_service.base.files import writing

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def run_command(run: Callable[[], int], program: str) -> int:
    """Return the exit code of `run`; 1 if its output has no reader (`| head`) or no space, 143 if a SIGTERM
    ended it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal cannot show must not end a run
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _exit_code(run)
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


@contextmanager
def redirected_output(log: Path) -> Iterator[TextIO | None]:
    """Append to `log` what this process and its children print during the block.

    Yields the former standard error, for what must be seen; None if it was closed. Raises OutputError if
    `log` cannot be written.
    """
    former = {fd: _duplicate(fd) for fd in (1, 2)}
    with writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    shown = None
    if former[2] is not None:
        encoding = getattr(sys.stderr, "encoding", None)
        shown = os.fdopen(os.dup(former[2]), "w", encoding=encoding, errors="backslashreplace")
    _flush_output()
    for fd in former:
        os.dup2(target, fd)
        os.set_inheritable(fd, True)  # which dup2 does not do for a descriptor that is `target` already
    try:
        yield shown
    finally:
        _flush_output()
        if shown is not None:
            with suppress(OSError):
                shown.close()
        if target > 2:
            os.close(target)
        for fd, copy in former.items():
            if copy is None:
                os.close(fd)
            else:
                os.dup2(copy, fd)
                os.close(copy)


def _exit_code(run: Callable[[], int]) -> int:
    try:
        return run()
    except SystemExit as end:
        if end.code == signal.SIGTERM:  # Ray's handler exits with the signal's number
            return 128 + signal.SIGTERM
        if sys.stdout is not None:
            sys.stdout.flush()
        raise


def standard_input() -> BinaryIO:
    """Return standard input; ConfigurationError if the caller closed it."""
    if sys.stdin is None:
        raise ConfigurationError("standard input is closed: give a file or a pipe to read from")
    return sys.stdin.buffer


def json_must_be_ascii() -> bool:
    """Whether standard output cannot show every character; escapes of Python would break JSON."""
    encoding = getattr(sys.stdout, "encoding", None)
    return encoding is not None and codecs.lookup(encoding).name != "utf-8"


def _duplicate(fd: int) -> int | None:
    """A copy beside the standard streams; None for a closed one."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError:
        return None


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _discard_output() -> None:
    """What is still buffered goes nowhere, so that Python does not fail when it flushes at its end."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
