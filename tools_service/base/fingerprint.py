"""Has an input changed? The one fingerprint of files and settings.

In: files, or anything that JSON can say. Out: a short hex digest; equal digests mean equal inputs. Contents
are read only where asked for: names, sizes and times tell most changes and cost nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class FileState:
    """A file as it was: `sha256` is of its content, where that was read."""

    name: str
    size: int
    mtime_ns: int
    sha256: str | None = None

    @staticmethod
    def of(path: Path, *, name: str | None = None, contents: bool = False) -> FileState:
        """The state of `path` now, called `name` or by its file name."""
        stat = path.stat()
        digest = content_digest(path) if contents else None
        return FileState(name or path.name, stat.st_size, stat.st_mtime_ns, digest)


def content_digest(path: Path, algorithm: str = "sha256") -> str:
    """Digest of a file's content (an algorithm of hashlib), read in a stream."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def folder_states(folder: Path) -> list[FileState]:
    """The files directly in `folder`, by name; none where there is no such folder."""
    return [FileState.of(path) for path in sorted(folder.glob("*")) if path.is_file()]


def fingerprint(parts: Iterable[Any]) -> str:
    """A hex digest of JSON values, dataclasses among them, in their order."""
    text = json.dumps(list(parts), sort_keys=True, default=_plain)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, FileState):
        return [value.name, value.size, value.mtime_ns, value.sha256]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot be fingerprinted: {value!r}")
