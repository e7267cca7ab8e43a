"""One writing process at a time: locks of the operating system on lock files.

In: the lock file of an output. Out: the lock for the length of a block, or OutputInUseError. A
folder that is written in place has its lock inside (pipeline/storage/lock.py). A file, or a folder
that is replaced as a whole, has it beside: `.NAME.lock`, which is removed at the end. No lock is
ever stale: the system releases it when the holder dies. Readers need no lock.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tools_service.base.errors import ConfigurationError
from tools_service.base.files import OutputError, now, resolved, writing

logger = logging.getLogger(__name__)

LOCK = ".lock"
_HOLDER = re.compile(rb"process \d+( on( \S+( since( \S+)?)?)?)?")  # or cut
_MAX_HOLDER = 1_000


class OutputInUseError(ConfigurationError):
    """Another process is writing to the output."""


class UnusableOutputError(OutputError, ConfigurationError):
    """Nothing can be written to the output: a file is in the way, or the folder is read-only."""


def lock_beside(output: Path) -> Path:
    """The lock file of an output that is replaced as a whole."""
    return output.with_name(f".{output.name}{LOCK}")


@contextmanager
def output_lock(output: Path, *, wait: bool = False) -> Iterator[None]:
    """Lock a file, or a folder that is replaced as a whole; `wait` for another writer's end.

    Raises OutputInUseError, and UnusableOutputError where no lock file can be written.
    """
    output = resolved(output)
    with ExitStack() as stack:
        with unusable(output):
            output.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(file_lock(lock_beside(output), output, wait=wait, remove=True))
        inside = output / LOCK  # where a command is writing in place
        if inside.is_file():
            stack.enter_context(file_lock(inside, output, wait=wait))
        yield


@contextmanager
def file_lock(path: Path, output: Path, *, wait: bool = False, remove: bool = False) -> Iterator[None]:
    """Lock the file `path`, which is created, for writing to `output`. The file names the holder."""
    with _opened(path, output, wait) as lock:
        with writing(output):
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}, since {now()},".encode())
        try:
            yield
        finally:
            with suppress(OSError):  # a folder may be gone
                lock.truncate(0)
                if remove:
                    path.unlink()


@contextmanager
def unusable(output: Path) -> Iterator[None]:
    """Turn an OSError of the block into an UnusableOutputError that names `output`."""
    try:
        yield
    except OSError as error:
        raise UnusableOutputError(
            f"{output}: cannot write: {error}. Mend that, or name another output"
        ) from error


def require_unlocked(path: Path, output: Path) -> None:
    """OutputInUseError if another process holds the lock file `path`, which may be missing."""
    try:
        lock = path.open("rb")
    except OSError:
        return
    with lock:
        _try_lock(lock, output, wait=False)


@contextmanager
def _opened(path: Path, output: Path, wait: bool) -> Iterator[BinaryIO]:
    """The locked file. A holder may remove the file as it ends, so the name is checked again."""
    while True:
        with unusable(output):
            opened = path.open("ab+", buffering=0)
        with opened as lock:
            _try_lock(lock, output, wait=wait)
            _require_lock_file(path, lock)
            if not _is_file_at(path, lock):
                continue
            yield lock
            return


def _require_lock_file(path: Path, lock: BinaryIO) -> None:
    """UnusableOutputError if the file holds anything but the name of a holder: it would be emptied."""
    lock.seek(0)
    content = lock.read(_MAX_HOLDER)
    if content and not _HOLDER.fullmatch(content):
        raise UnusableOutputError(f"{path}: not a lock file of this program; move it, or name another output")


def _is_file_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _try_lock(lock: BinaryIO, output: Path, *, wait: bool) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read(_MAX_HOLDER).decode(errors="replace")[:200] or "another process"
        if not wait:
            raise OutputInUseError(
                f"{output}: {holder} is writing here; wait for it, stop it, or choose another output"
            ) from error
        logger.info("%s: waiting for %s to finish writing", output, holder.rstrip(","))
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:  # some network file systems have no locks
        logger.warning("%s: cannot be locked (%s); start only one run on it at a time", output, error)
