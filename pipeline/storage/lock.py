"""The exclusive lock of an output folder: one writing process at a time.

In: a folder. Out: the lock for the length of a block, or OutputInUseError. Readers need no lock.
"""

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
    """Another process is writing to the folder."""


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Create `folder` and lock it against every other process.

    The lock file names the holder, and stays behind, empty. No lock is ever stale: the operating system
    releases it when the holder dies. Raises OutputInUseError, and OutputError for an unwritable folder.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        unlocked = (folder / LOCK).open("ab+", buffering=0)
    with unlocked as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().decode() or "another process"
            raise OutputInUseError(
                f"{folder}: {holder} is writing here; wait for it, stop it, or choose another output"
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
