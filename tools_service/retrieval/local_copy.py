"""An index elsewhere, and its copy on this machine's disk: from a URI, or a folder that nodes share.

In: the location of an index. Out: a folder of this machine with the same files, which the replicas
of a node share. The first replica copies it, others wait. A copy appears when it is complete: all
files have the sizes of the manifest, which was the same before and after. It is replaced when the
manifest there changes; who has the old copy open keeps it. A location has a folder of its own, so that
several indexes may be copied below the same one.
"""

from __future__ import annotations

import json
import logging
import posixpath
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import ArrowException
from pyarrow.fs import FileSystem, LocalFileSystem, copy_files

from tools_service.base.errors import brief
from tools_service.base.files import atomic_write
from tools_service.base.fingerprint import fingerprint
from tools_service.base.locks import output_lock
from tools_service.base.ownership import replacing_folder
from tools_service.base.uris import open_uri
from tools_service.retrieval.index import INDEX, MANIFEST, OPTION, IndexFolderError, check_manifest

logger = logging.getLogger(__name__)

_COPY_OPTION = "tools.wikisearch.local_copy"
_MAX_MANIFEST_BYTES = 64 * 2**20
_FILES_AT_ONCE = 4
_HINT = ", the credentials and the endpoint (AWS_ENDPOINT_URL)"
_INDEX_PATHS = re.compile("|".join(INDEX.paths))


@dataclass(frozen=True)
class StoredIndex:
    """An index in a folder or at a URI, which may be read and copied."""

    location: str
    filesystem: FileSystem
    path: str

    @staticmethod
    def at(location: Path | str) -> StoredIndex:
        """Raises ConfigurationError if a URI cannot be opened."""
        if isinstance(location, Path):
            return StoredIndex(str(location.resolve()), LocalFileSystem(), str(location.resolve()))
        return StoredIndex(location, *open_uri(location, OPTION))

    def manifest(self) -> dict[str, Any]:
        """The manifest. IndexFolderError if there is none, or a file of the index is missing or cut."""
        return self._checked(self._manifest_text())

    def copy_below(self, parent: Path) -> Path:
        """The folder below `parent` with the copy, after copying if there is none of this index.

        Raises IndexFolderError if the index is not whole, changes meanwhile, or finds no room, and
        NotOwnError if something else is in the folder's place.
        """
        folder = parent / f"index-{fingerprint([self.location])[:16]}"
        text = self._manifest_text()
        if not _is_copy(folder, text):
            with output_lock(folder, wait=True):
                if not _is_copy(folder, text):
                    self._copy(text, folder)
        return folder

    def _copy(self, text: str, folder: Path) -> None:
        sizes = self._checked(text)["files"]
        started, gigabytes = time.monotonic(), sum(sizes.values()) / 1e9
        with replacing_folder(folder, INDEX, _COPY_OPTION) as staging:
            free = shutil.disk_usage(staging).free
            if sum(sizes.values()) > free:
                raise IndexFolderError(
                    f"{_COPY_OPTION}: the index {self.location} takes {gigabytes:.1f} GB, and "
                    f"{folder.parent} has {free / 1e9:.1f} GB free; make room, or name a folder on another "
                    "disk"
                )
            logger.info("copying the index %s (%.1f GB) to %s", self.location, gigabytes, folder)
            with self._naming_failures("copied"), ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
                list(pool.map(lambda name: self._copy_file(name, staging / name), sizes))
            _require_sizes(sizes, {name: (staging / name).stat().st_size for name in sizes}, self.location)
            if self._manifest_text() != text:
                raise IndexFolderError(f"{OPTION}: {self.location} changed while it was copied; start again")
            atomic_write(staging / MANIFEST, text)
        logger.info("copied the index %s in %.0f s", self.location, time.monotonic() - started)

    def _copy_file(self, name: str, target: Path) -> None:
        target.parent.mkdir(exist_ok=True)
        copy_files(
            posixpath.join(self.path, name),
            str(target),
            source_filesystem=self.filesystem,
            destination_filesystem=LocalFileSystem(),
        )

    def _manifest_text(self) -> str:
        content = b""

        def read() -> Any:
            nonlocal content
            path = posixpath.join(self.path, MANIFEST)
            with self._naming_failures("read"):
                is_there = self.filesystem.get_file_info(path).is_file
                if is_there:
                    with self.filesystem.open_input_stream(path) as file:
                        content = file.read(_MAX_MANIFEST_BYTES)
            if not is_there:
                raise FileNotFoundError(path)
            return json.loads(content.decode("utf-8"))

        check_manifest(read, self.location)
        return content.decode("utf-8")

    def _checked(self, text: str) -> dict[str, Any]:
        manifest = check_manifest(lambda: json.loads(text), self.location)
        sizes: dict[str, int] = manifest["files"]
        foreign = next((name for name in sizes if not _INDEX_PATHS.fullmatch(name)), None)
        if not sizes or foreign is not None:
            lists = "lists no files" if foreign is None else f"lists {foreign!r}, no file of an index"
            raise IndexFolderError(
                f"{OPTION}: {self.location}/{MANIFEST} {lists}; build the index again with "
                "python -m tools_service index"
            )
        with self._naming_failures("read"):
            infos = self.filesystem.get_file_info([posixpath.join(self.path, name) for name in sizes])
        found = {name: info.size if info.is_file else None for name, info in zip(sizes, infos, strict=True)}
        _require_sizes(sizes, found, self.location)
        return manifest

    @contextmanager
    def _naming_failures(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, ArrowException) as error:
            hint = "" if isinstance(self.filesystem, LocalFileSystem) else _HINT
            raise IndexFolderError(
                f"{OPTION}: {self.location} cannot be {verb}: {brief(error)}. Check the path{hint}"
            ) from error


def _is_copy(folder: Path, manifest_text: str) -> bool:
    try:
        if (folder / MANIFEST).read_text(encoding="utf-8") != manifest_text:
            return False
        sizes = json.loads(manifest_text)["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _require_sizes(sizes: dict[str, int], found: dict[str, int | None], location: str) -> None:
    for name, size in sizes.items():
        if found[name] != size:
            given = "is missing" if found[name] is None else f"has {found[name]:,} bytes"
            raise IndexFolderError(
                f"{OPTION}: {location}/{name} {given}, the manifest says {size:,}; copy the index there "
                f"again, {MANIFEST} last"
            )
