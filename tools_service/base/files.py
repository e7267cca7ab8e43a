"""Atomic writes of files and folders, and the time stamp for them.

A write that the system refuses becomes an OutputError that names the path.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tools_service.base.errors import ToolformerError

PART = ".part"  # suffix of a file that is not complete yet


class OutputError(ToolformerError):
    """An output cannot be written: no space, no permission, or a file system that is gone."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into an OutputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot write: {error}. Mend that and give the command again, or name another output"
        ) from error


def atomic_write(path: Path, text: str) -> None:
    """Write a small file: a reader sees the old content or the new. OutputError if it fails."""
    part = path.with_name(path.name + PART)
    with writing(path):
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


def atomic_write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON, as `atomic_write` does."""
    atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give the block a new, empty folder beside `folder`, and put it in that place at the end.

    `folder` appears only when it is complete. Processes that have files of the old folder open keep
    them. If the block or the exchange raises, the old folder stays. The caller decides whether
    `folder` may be replaced. Raises OutputError if the file system refuses.
    """
    folder = folder.resolve()  # of a symbolic link, replace the target
    token = uuid.uuid4().hex[:8]  # not the process id, which two containers can share
    staging = folder.with_name(f".{folder.name}.{token}{PART}")
    old = folder.with_name(f".{folder.name}.{token}.old")
    try:
        with writing(folder):
            staging.mkdir(parents=True)
        yield staging
        with writing(folder):
            replaced = folder.exists()
            if replaced:
                folder.rename(old)
            try:
                staging.rename(folder)
            except OSError:
                if replaced:
                    old.rename(folder)
                raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def now() -> str:
    """Return the time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
