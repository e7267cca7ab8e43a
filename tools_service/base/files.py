"""Atomic writes of small files, reading small JSON files, and the time stamp for both.

A write that the system refuses becomes an OutputError that names the path.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from tools_service.base.errors import ConfigurationError, ToolformerError

PART = ".part"  # suffix of a file that is not complete yet
_MAX_JSON_BYTES = 64 * 2**20  # manifests and results take kilobytes

CACHE_VARIABLE = "TOOLFORMER_CACHE"
"""Folder of what is kept between runs; default: toolformer/ in $XDG_CACHE_HOME, or in ~/.cache."""

M = TypeVar("M", bound=BaseModel)


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
        try:
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise


def atomic_write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON, as `atomic_write` does."""
    atomic_write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a small JSON file. Raises OSError or ValueError; a NaN or an infinity is a ValueError."""
    return _parse(_read_text(path))


def read_model(path: Path, model: type[M]) -> M:
    """Read a small JSON file as `model`. Raises OSError or ValueError, as `read_json` does."""
    text = _read_text(path)
    _parse(text)
    return model.model_validate_json(text)


def size_of_file(path: Path) -> int:
    """Bytes of a regular file. ValueError for anything else: opening a named pipe would wait for ever.

    The system is asked once, so a file that another process just wrote is either missing (OSError) or there.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("not a file")
    return found.st_size


def _read_text(path: Path) -> str:
    if (size := size_of_file(path)) > _MAX_JSON_BYTES:
        raise ValueError(f"{size:,} bytes, at most {_MAX_JSON_BYTES:,} are read")
    return path.read_text(encoding="utf-8")


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("not JSON: nested too deeply") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"not JSON: {name} is not a number")


def apply_umask(folder: Path) -> None:
    """Give the files of `folder` that only their owner may read the mode of a new file.

    Libraries that rename a temporary file to its name, as safetensors does, leave 0600.
    """
    probe = folder / f".mode{PART}"
    with writing(folder):
        probe.touch()
        mode = probe.stat().st_mode
        probe.unlink()
        for path in folder.iterdir():
            if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 == 0o600:
                path.chmod(mode & 0o777)


def resolved(path: Path) -> Path:
    """`path` without symbolic links. ConfigurationError if they lead in a circle or it has no name."""
    try:
        path = path.resolve()
    except (OSError, RuntimeError) as error:
        raise ConfigurationError(f"{path}: {error}; name another output") from error
    if not path.name:
        raise ConfigurationError(f"{path}: the root cannot be an output; name a folder or a file")
    return path


def cache_folder() -> Path:
    """The folder of what is kept between runs: measurements, copies of indexes. It need not exist."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "toolformer"


def now() -> str:
    """Return the time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
