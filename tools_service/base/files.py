"""Files and folders that appear whole or not at all, and the clock that stamps them.

A write that the operating system refuses becomes an OutputError that names the path. Folders of rows are
pipeline/storage's.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tools_service.base.errors import ToolformerError

PART = ".part"
"""Suffix of a file that is not complete yet."""


class OutputError(ToolformerError):
    """What cannot be written: no space, no right, a file system that is gone."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """The operating system's refusals as an OutputError that names `path`."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot write: {error}. Mend that and give the command again, or name another output"
        ) from error


def atomic_write(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part. OutputError if it
    cannot be written."""
    part = path.with_name(path.name + PART)
    with writing(path):
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


def atomic_write_json(path: Path, content: object) -> None:
    """`content` as indented JSON, whole or not at all."""
    atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new, empty folder beside `folder`; at the end of the block it takes its place.

    A reader finds the old folder or the new one, complete; whoever has files of the old one open keeps them.
    If the block raises, `folder` stays as it was. Whether `folder` may be replaced is for the caller to say.
    """
    staging, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    for left_over in (staging, old):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        with writing(folder):
            staging.mkdir(parents=True)
        yield staging
        with writing(folder):
            if folder.exists():
                folder.rename(old)
            try:
                staging.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def now() -> str:
    """The time, ISO 8601, UTC, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
