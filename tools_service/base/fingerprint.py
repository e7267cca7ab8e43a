"""Has an input changed? The one fingerprint of files and settings.

In: files, or values that have a JSON form. Out: the state of a file, or a hex digest; equal digests
mean equal inputs. Contents are read only on request: names, sizes and times show most changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from glob import glob
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass
from pydantic_core import to_jsonable_python

from tools_service.base.report_file import REPORT, is_report

_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class FileState:
    """A file at one moment. `sha256` is the digest of its content, None if that was not read."""

    name: str
    size: int
    mtime_ns: int
    sha256: str | None = None

    @staticmethod
    def of(path: Path, *, name: str | None = None, contents: bool = False) -> FileState:
        """Return the state of `path`, under `name` or its file name."""
        # stat comes first: a change while the content is read shows as another time later.
        stat = path.stat()
        digest = content_digest(path) if contents else None
        return FileState(name or path.name, stat.st_size, stat.st_mtime_ns, digest)

    def matches(self, path: Path) -> bool:
        """Whether `path` has this name, size and content.

        An equal time counts as equal content. Where the time differs (a fresh checkout, a copy),
        the content is read and compared, if its digest is known.
        """
        stat = path.stat()
        if (path.name, stat.st_size) != (self.name, self.size):
            return False
        if stat.st_mtime_ns == self.mtime_ns:
            return True
        return self.sha256 is not None and content_digest(path) == self.sha256


def content_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the digest of a file's content as hex digits. The file is streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def folder_states(folder: Path) -> list[FileState]:
    """Return the files directly in `folder`, sorted by name; none if there is no such folder."""
    return [FileState.of(path) for path in sorted(folder.glob("*")) if path.is_file()]


def input_states(names: Iterable[str | Path]) -> Iterator[str | FileState]:
    """Yield each of the files, folders, globs and URIs, then the state of each file it stands for.

    A report in a folder is no input.
    """
    for name in map(str, names):
        yield name
        for path in map(Path, sorted(glob(name, recursive=True))):
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            for file in filter(Path.is_file, files):
                if file.name == REPORT and is_report(file):
                    continue
                yield FileState.of(file, name=str(file))


def fingerprint(parts: Iterable[Any]) -> str:
    """Return a hex digest of JSON values, paths, dataclasses or models; ValueError for others."""
    text = json.dumps(to_jsonable_python(list(parts)), sort_keys=True)  # ASCII
    return hashlib.blake2b(text.encode("ascii"), digest_size=_DIGEST_BYTES).hexdigest()
