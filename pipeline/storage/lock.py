"""One writer at a time for an output folder."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools_service.base.errors import ConfigurationError
from tools_service.base.files import now, writing

logger = logging.getLogger(__name__)

LOCK = ".lock"


class OutputInUseError(ConfigurationError):
    """Another process writes into the folder."""


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Make `folder`, and keep it from every other process that asks. OutputInUseError if one has it already,
    OutputError if it cannot be written.

    The operating system lets go of the lock when its holder dies, however it dies, so none is ever stale. The
    file says who holds it; it stays behind, empty.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        unlocked = (folder / LOCK).open("ab+", buffering=0)
    with unlocked as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise OutputInUseError(
                f"{folder}: {lock.read().decode() or 'another process'} is writing here; wait for it, stop "
                "it, or choose another output"
            ) from error
        except OSError as error:  # some network file systems have no locks
            logger.warning("%s: cannot be locked (%s); start only one run on it at a time", folder, error)
        with writing(folder):
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}, since {now()},".encode())
        try:
            yield
        finally:
            lock.truncate(0)
