"""Who is writing to an output: reads the lock files of locks.py and takes none of them for long.

In: an output. Out: the process that its lock file names, and whether it still holds the lock. A killed
process leaves its name in the file, and no lock.
"""

from __future__ import annotations

import fcntl
import re
from pathlib import Path

from tools_service.base.locks import LOCK, lock_beside
from tools_service.base.settings import Frozen

_NAMED = re.compile(r"process (\d+) on (\S+), since ([^\s,]+)")


class LockHolder(Frozen):
    """A process with the lock of an output, or one that was killed while it had it."""

    pid: int
    host: str
    since: str  # ISO time
    holds: bool | None  # None: the file system cannot tell


def lock_holder(output: Path) -> LockHolder | None:
    """The process that a lock file of `output` names, in the folder or beside it: if possible the one that
    holds it."""
    found = [holder for path in (output / LOCK, lock_beside(output)) if (holder := _read(path)) is not None]
    return max(found, key=lambda holder: holder.holds is True, default=None)


def _read(path: Path) -> LockHolder | None:
    try:
        with path.open("rb") as file:
            named = _NAMED.match(file.read(1_000).decode(errors="replace"))
            if named is None:  # emptied by its last holder
                return None
            holds: bool | None = False
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                holds = True
            except OSError:
                holds = None
    except OSError:
        return None
    return LockHolder(pid=int(named[1]), host=named[2], since=named[3], holds=holds)
