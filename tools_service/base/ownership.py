"""What may be removed or replaced: only what this project made (docs/decisions/0022).

In: the path of an output, and the kind of output that a command writes there. Out: the output
removed, or replaced by a new one; or NotOwnError, which names what is in the way. An output is our
own if it carries the mark of its kind and holds nothing but files with names that we give. All code
that removes or replaces outputs does it through this module.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tools_service.base.errors import ConfigurationError
from tools_service.base.files import PART, read_json, resolved, writing
from tools_service.base.locks import LOCK
from tools_service.base.report_file import REPORT, is_report

logger = logging.getLogger(__name__)

_MAX_SHOWN = 3
_FILES = frozenset({"rows", "scores"})  # folders, in outputs, that must hold nothing else


class NotOwnError(ConfigurationError):
    """Something would be removed or replaced that no command of this project wrote."""


@dataclass(frozen=True, kw_only=True)
class OutputKind:
    """How to recognise what a command writes: one file (no `paths`), or a folder."""

    name: str
    """For messages, with its article."""
    marks: Mapping[str, frozenset[str]]
    """JSON files, each with names that its object has; one of them must be there. "" is the output."""
    paths: tuple[str, ...] = ()
    """Expressions for all paths in the folder, earlier versions' included; folders end with /."""
    core: frozenset[str] = field(default_factory=frozenset)
    """Files that, all together, are a mark as well, where the JSON file cannot be read."""

    def is_marked(self, output: Path) -> bool:
        """Whether `output` carries the mark of this kind."""
        unreadable = True
        for name, keys in self.marks.items():
            try:
                content = read_json(output / name)
            except (OSError, ValueError):
                continue
            if isinstance(content, dict) and keys <= content.keys():
                return True
            unreadable = False
        return unreadable and bool(self.core) and all((output / name).is_file() for name in self.core)

    def refuse_another(self, output: Path, option: str = "output") -> None:
        """NotOwnError if `output` is that of another command: before a lock file is written into it.

        A mark that is damaged, but has most of its names, is left to what reads it.
        """
        _refuse_inside(output, option)
        for name, keys in self.marks.items():
            with suppress(OSError, ValueError):
                content = read_json(output / name)
                if isinstance(content, dict) and 2 * len(keys & content.keys()) < len(keys):
                    raise NotOwnError(
                        f"{option}: {output} was written by another command, it is not {self.name}; name "
                        "another folder"
                    )

    def foreign(self, folder: Path) -> Iterator[str]:
        """The paths in `folder` that this kind does not have, links included; the first come at once.

        A page with the name of the report that is no report of ours is somebody else's.
        """
        ours = re.compile("|".join(self.paths))
        return (
            path
            for path in _paths(folder)
            if path != LOCK and not (ours.fullmatch(path) and (path != REPORT or is_report(folder / path)))
        )


def _refuse_inside(output: Path, option: str) -> None:
    """NotOwnError if `output` would stand among the files of another, which could not be read any more."""
    for folder in output.absolute().parents:
        if folder.name in _FILES and (folder.parent / "manifest.json").is_file():
            raise NotOwnError(
                f"{option}: {output} is inside {folder}, among the files of another output; choose another"
            )


def require_own(output: Path, kind: OutputKind, option: str = "output") -> None:
    """Raise NotOwnError unless `output` is missing, an empty folder, or our own. Changes nothing."""
    _refuse_inside(output, option)
    with _reading(output, option):
        if not os.path.lexists(output):
            return
        if not kind.paths:
            if not output.is_file() or not kind.is_marked(output):
                raise NotOwnError(f"{option}: {output} exists and is not {kind.name}; name another file")
            return
        if not output.is_dir():
            raise NotOwnError(f"{option}: {output} is not a folder; name another one")
        if foreign := list(islice(kind.foreign(output), _MAX_SHOWN + 1)):
            shown = ", ".join(foreign[:_MAX_SHOWN]) + (" and more" if len(foreign) > _MAX_SHOWN else "")
            raise NotOwnError(
                f"{option}: {output} is not empty and not {kind.name} alone, it holds {shown}; move that "
                "away, or name another folder"
            )
        if any(path != LOCK for path in _paths(output)) and not kind.is_marked(output):
            raise NotOwnError(
                f"{option}: {output} is not empty and not {kind.name}, its {' or '.join(kind.marks)} is "
                "missing, damaged or of something else; name another folder, or remove it yourself"
            )


def remove_own(output: Path, kind: OutputKind, option: str = "output", *, keep_folder: bool = False) -> None:
    """Remove `output` after `require_own`; `keep_folder` leaves the folder with its lock file."""
    require_own(output, kind, option)
    with writing(output):
        if kind.paths and output.exists():
            # A symbolic link keeps its empty target, so that it can be written again.
            _remove(output, kind, keep_folder=keep_folder or output.is_symlink())
        elif not kind.paths:
            output.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path, kind: OutputKind, option: str = "output") -> Iterator[Path]:
    """Give the block a new, empty folder beside `folder`, and put it in that place at the end.

    `folder` appears only when it is complete. Processes that have files of the old folder open keep
    them. If the block or the exchange raises, the old folder stays. The caller holds the lock of
    `folder` (locks.output_lock). Raises NotOwnError, before the block and again after it, if
    `folder` may not be replaced, and OutputError if the file system refuses.
    """
    folder = resolved(folder)  # of a symbolic link, replace the target
    _clean_up(folder, kind)
    require_own(folder, kind, option)
    token = uuid.uuid4().hex[:8]  # not the process id, which two containers can share
    staging = folder.with_name(f".{folder.name}.{token}{PART}")
    try:
        with writing(folder):
            staging.mkdir(parents=True)
        yield staging
        _exchange(staging, folder, folder.with_name(f".{folder.name}.{token}.old"), kind, option)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _exchange(staging: Path, folder: Path, old: Path, kind: OutputKind, option: str) -> None:
    require_own(folder, kind, option)
    with writing(folder):
        replaced = folder.exists()
        if replaced:
            folder.rename(old)
        try:
            if replaced and (foreign := next(kind.foreign(old), None)):  # written in the last moment
                raise OSError(f"{foreign} appeared in it")
            staging.rename(folder)
        except OSError:
            if replaced:
                old.rename(folder)
            raise
    if replaced:
        with writing(folder):
            _remove(old, kind)


def _clean_up(folder: Path, kind: OutputKind) -> None:
    """Remove what killed processes left beside `folder`. One that died in an exchange is undone."""
    leftover = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{8}}\.(part|old)")
    with writing(folder):
        beside = sorted(folder.parent.iterdir()) if folder.parent.is_dir() else []
        for path in beside:
            if not leftover.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
                continue
            if path.suffix == ".old" and not folder.exists() and kind.is_marked(path):
                path.rename(folder)
            elif foreign := next(kind.foreign(path), None):
                logger.warning("%s: a killed run left it; it stays, because it holds %s", path, foreign)
            else:
                _remove(path, kind)


def _remove(folder: Path, kind: OutputKind, *, keep_folder: bool = False) -> None:
    """Remove our own files in `folder`, and then the folders, which fails if they hold others."""
    kept = set(kind.foreign(folder)) | ({LOCK} if keep_folder else set())
    for path in sorted(_paths(folder), reverse=True):  # what a folder holds comes before it
        if path not in kept:
            (folder / path).rmdir() if path.endswith("/") else (folder / path).unlink(missing_ok=True)
    if not keep_folder:
        folder.rmdir()


def _paths(folder: Path) -> Iterator[str]:
    """All paths below `folder`; folders end with /, links with @."""
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders.sort()
        for name in (*folders, *sorted(files)):
            path = Path(parent, name)
            ending = "@" if path.is_symlink() else "/" if name in folders else ""
            yield path.relative_to(folder).as_posix() + ending


def _raise(error: OSError) -> None:
    raise error


@contextmanager
def _reading(output: Path, option: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotOwnError(f"{option}: {output} cannot be read: {error}; name another one") from error
