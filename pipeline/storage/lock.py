"""The exclusive lock of an output folder that is written in place: one writing process at a time.

In: a folder. Out: the lock for the length of a block, or OutputInUseError. Readers need no lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools_service.base.files import resolved
from tools_service.base.locks import (
    LOCK,
    OutputInUseError,
    file_lock,
    lock_beside,
    require_unlocked,
    unusable,
)
from tools_service.base.ownership import OutputKind

__all__ = ["LOCK", "OutputInUseError", "exclusive_lock"]


@contextmanager
def exclusive_lock(folder: Path, kind: OutputKind | None = None) -> Iterator[None]:
    """Create `folder` and lock it against every other process, one that replaces it included.

    The lock file names the holder, and stays behind, empty. Raises OutputInUseError, OutputError for an
    unwritable folder, and NotOwnError for the output of a command that does not write this `kind`.
    """
    if kind is not None:
        kind.refuse_another(folder)
    with unusable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / LOCK, folder):
        require_unlocked(lock_beside(resolved(folder)), folder)
        yield
