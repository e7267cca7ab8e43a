"""The files below a folder, each once, and what is left out of them with the reason.

In: a local folder. Out: `Found`. Links are followed. A file or folder is known by device and inode,
so that a link cannot repeat a file or go round in circles. The corpus and the sources of the search
index are both listed here.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tools_service.base.printable import printable

OTHER_TYPE = "file of another type"
NO_TARGET = "link without a target"
NOT_REGULAR = "no regular file, but a FIFO, socket or device"
SECOND_LINK = "second link to what is read"

_NO_TARGET_ERRORS = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A path that is not read. The reason says what it is."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A regular file. `identity` is its device and inode, or its path if the system has no inodes.

    `size` is in bytes, or None if the file system does not report it.
    """

    path: str
    size: int | None
    identity: tuple[int, int] | str

    @staticmethod
    def of(path: str, status: os.stat_result) -> FoundFile:
        """Return the file at `path` with the given state."""
        return FoundFile(path, status.st_size, _identity(path, status))


@dataclass(slots=True)
class Found:
    """The files below a folder, sorted by path, and what is left out."""

    files: list[FoundFile] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def find_below(
    folder: str,
    is_known_type: Callable[[str], bool],
    matches: Callable[[str], bool] = lambda path: True,
    *,
    hidden: bool = False,
) -> Found:
    """Return the regular files of known types below `folder`, and what is left out.

    Paths that do not match are ignored, and so are `hidden` names (``.x``, ``_x``), unless wanted.
    Of several paths of one file the first that leads through no link is kept. Raises OSError if a
    folder cannot be listed.
    """
    found = Found()
    folders, links = deque([folder]), deque[str]()
    seen_folders = {_identity(folder, os.stat(folder))}  # noqa: PTH116
    linked_files: list[FoundFile] = []
    through_link = False
    while folders or links:
        through_link = through_link or not folders
        current = folders.popleft() if folders else links.popleft()
        if through_link and not _enter(current, seen_folders, found):
            continue
        for path, status, is_link in _entries(current, hidden, found):
            if not stat.S_ISDIR(status.st_mode):
                into = linked_files if is_link or through_link else found.files
                _add(path, status, into, found)
            elif is_link or through_link:
                links.append(path)
            else:
                seen_folders.add(_identity(path, status))
                folders.append(path)
    left_out = [item for item in found.left_out if matches(item.path)]
    in_order = [*sorted(found.files, key=_path), *sorted(linked_files, key=_path)]
    files = [file for file in in_order if matches(file.path)]
    left_out += [LeftOut(file.path, OTHER_TYPE) for file in files if not is_known_type(file.path)]
    kept, second = unique((file for file in files if is_known_type(file.path)), set())
    return Found(sorted(kept, key=_path), sorted([*left_out, *second], key=_path))


def unique(
    files: Iterable[FoundFile], seen: set[tuple[int, int] | str]
) -> tuple[list[FoundFile], list[LeftOut]]:
    """Return the files that are not in `seen`, and the others. `seen` takes them in."""
    kept, second = [], []
    for file in files:
        if file.identity in seen:
            second.append(LeftOut(file.path, SECOND_LINK))
        else:
            seen.add(file.identity)
            kept.append(file)
    return kept, second


def describe(left_out: Iterable[LeftOut]) -> Iterator[str]:
    """Yield a sentence for each reason, with the number of paths and some names."""
    names: dict[str, list[str]] = {}
    for item in left_out:
        names.setdefault(item.reason, []).append(printable(item.path.rpartition("/")[2]))
    for reason, shown in names.items():
        more = ", …" if len(shown) > _SHOWN else ""
        yield f"not read: {len(shown)} x {reason} ({', '.join(shown[:_SHOWN])}{more})"


def _entries(folder: str, hidden: bool, found: Found) -> Iterator[tuple[str, os.stat_result, bool]]:
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if not hidden and entry.name.startswith((".", "_")):
            continue
        try:
            yield entry.path, entry.stat(), entry.is_symlink()
        except OSError as error:
            if error.errno not in _NO_TARGET_ERRORS or not entry.is_symlink():
                raise
            found.left_out.append(LeftOut(entry.path, NO_TARGET))


def _enter(folder: str, seen: set[tuple[int, int] | str], found: Found) -> bool:
    """Whether a folder that a link leads to is new."""
    identity = _identity(folder, os.stat(folder))  # noqa: PTH116
    if identity in seen:
        found.left_out.append(LeftOut(folder, SECOND_LINK))
        return False
    seen.add(identity)
    return True


def _add(path: str, status: os.stat_result, files: list[FoundFile], found: Found) -> None:
    if stat.S_ISREG(status.st_mode):
        files.append(FoundFile.of(path, status))
    else:
        found.left_out.append(LeftOut(path, NOT_REGULAR))


def _identity(path: str, status: os.stat_result) -> tuple[int, int] | str:
    return (status.st_dev, status.st_ino) if status.st_ino else path


def _path(item: FoundFile | LeftOut) -> str:
    return item.path
