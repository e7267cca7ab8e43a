"""Lists the files of a corpus from files, folders, globs and URIs.

In: `CorpusConfig.paths` and a slice. Out: one picklable `CorpusFile` per file, in the given order and
sorted within a folder or glob. Supported are local paths and the URIs of every filesystem that pyarrow
(s3, gs, hdfs, abfs, hf) or fsspec (memory, http, sftp, …) opens. documents.py reads the contents. No Ray.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import fsspec
import pyarrow as pa
import pyarrow.fs
from fsspec.utils import glob_translate

from pipeline.base.config import CorpusConfig
from tools_service.base.errors import ConfigurationError

logger = logging.getLogger(__name__)

Format = Literal["jsonl", "parquet", "text"]

_FORMATS: dict[str, Format] = {"parquet": "parquet", "txt": "text"}  # others are jsonl
_EXTENSION = re.compile(r"\.(json|jsonl|ndjson|txt)(?:\.(gz|zst))?$|\.(parquet)$", re.IGNORECASE)
KNOWN_EXTENSIONS = ".json .jsonl .ndjson .txt (each also with .gz or .zst), .parquet"


class CorpusError(ConfigurationError):
    """The corpus is unusable: no file found, not reachable, or no readable document."""


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """One file of the corpus.

    `name` is the end of its path, at least folder and file name. `Document.source` and the text ids
    are derived from it, so it does not depend on the working directory or the machine. `path` is
    the path within the filesystem that the URI `root` opens ("" is the local disk). `size` is in
    bytes, or None if the filesystem does not report it.
    """

    name: str
    path: str
    root: str
    size: int | None

    @property
    def format(self) -> Format:
        return _FORMATS.get(self._extension()[0], "jsonl")

    @property
    def compression(self) -> str:
        """gz, zst, or "" for an uncompressed file."""
        return self._extension()[1]

    def _extension(self) -> tuple[str, str]:
        """File type and compression in the file name, in lower case."""
        match = _EXTENSION.search(self.name)
        if match is None:
            raise CorpusError(f"{self.name}: unknown file type; supported are {KNOWN_EXTENSIONS}")
        return (match[1] or match[3]).lower(), (match[2] or "").lower()

    def open_stream(self) -> pa.NativeFile:
        """A stream of the raw bytes, without decompression."""
        return _filesystem(self.root).open_input_stream(self.path, compression=None)

    def open_random(self) -> pa.NativeFile:
        """The raw bytes with random access, for Parquet."""
        return _filesystem(self.root).open_input_file(self.path)


def list_files(config: CorpusConfig) -> list[CorpusFile]:
    """The corpus files of the configured slice, or of the whole corpus without one; each file once.

    Raises CorpusError if a path matches no file, or there are fewer files than slices.
    """
    files = all_files(config)
    if config.slice is None:
        return files
    index, count = config.slice_index_and_count
    if count > len(files):
        raise CorpusError(
            f"corpus.slice = {config.slice}: a slice has whole files, and there are only {len(files)}; "
            "use fewer slices, or split the files"
        )
    # Sorted by name, so that the order of the paths does not matter.
    return sorted(files, key=lambda file: file.name)[index::count]


def all_files(config: CorpusConfig) -> list[CorpusFile]:
    """Every corpus file, whatever the slice: the name of a file depends on all other files."""
    if not config.paths:
        raise CorpusError("corpus.paths is empty: give files, folders, globs or URIs")
    files: dict[str, tuple[str, str, int | None]] = {}
    for entry in config.paths:
        for root, path, size in _expand(entry):
            files.setdefault(_location(root, path), (root, path, size))
    names = _short_names(files)
    return [CorpusFile(names[location], path, root, size) for location, (root, path, size) in files.items()]


@functools.cache
def _filesystem(root: str) -> pyarrow.fs.FileSystem:
    return _resolve(root)[0] if root else pyarrow.fs.LocalFileSystem()


def _resolve(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The filesystem of a URI (pyarrow's, else fsspec's) and the path within it."""
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid as not_of_arrow:
        if "Unrecognized filesystem type" not in str(not_of_arrow):
            raise
        remote, path = fsspec.core.url_to_fs(uri)
        filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(remote))
    return filesystem, path


def _expand(entry: str) -> Iterator[tuple[str, str, int | None]]:
    """(root, path, size) of the files that an entry of `config.paths` matches."""
    try:
        base, pattern = _split_glob(entry)
        if "://" in base and not base.startswith("file://"):
            root, (filesystem, start) = base, _resolve(base)
        else:
            root, filesystem, start = "", pyarrow.fs.LocalFileSystem(), _local_path(base)
        info = filesystem.get_file_info(start)
        if info.type == pyarrow.fs.FileType.File and not pattern:
            if not _EXTENSION.search(_location(root, info.path)):
                raise CorpusError(f"{entry}: unknown file type; supported are {KNOWN_EXTENSIONS}")
            yield root, info.path, info.size
            return
        below = pyarrow.fs.FileSelector(start, recursive=True, allow_not_found=True)
        listing = filesystem.get_file_info(below)
    except (OSError, ValueError, ImportError, NotImplementedError) as error:
        raise CorpusError(f"{entry}: cannot be opened: {error}") from error
    if info.type == pyarrow.fs.FileType.NotFound and not listing:
        raise CorpusError(f"{entry}: no such file or folder")
    files = _corpus_files(entry, start, pattern, listing)
    if not files:
        raise CorpusError(f"{entry}: no corpus file found; supported are {KNOWN_EXTENSIONS}")
    for file in files:
        yield root, file.path, file.size


def _corpus_files(
    entry: str, start: str, pattern: str, listing: list[pyarrow.fs.FileInfo]
) -> list[pyarrow.fs.FileInfo]:
    """The files below `start` that match the pattern, without hidden files (`.x`, `_x`)."""
    regex = re.compile(glob_translate(pattern)) if pattern else None
    files: list[pyarrow.fs.FileInfo] = []
    ignored: list[pyarrow.fs.FileInfo] = []
    for info in sorted(listing, key=lambda info: str(info.path)):
        parts = info.path[len(start) :].strip("/").split("/")
        if info.type != pyarrow.fs.FileType.File or any(part.startswith((".", "_")) for part in parts):
            continue
        # A pattern that matches a folder selects everything in it.
        prefixes = ("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        if regex and not any(map(regex.match, prefixes)):
            continue
        (files if _EXTENSION.search(info.path) else ignored).append(info)
    if ignored:
        shown = ", ".join(info.base_name for info in ignored[:5])
        logger.warning("%s: %d files of another type are not read: %s", entry, len(ignored), shown)
    return files


def _split_glob(entry: str) -> tuple[str, str]:
    """The path before the first component with a wildcard, and the pattern after it, or ""."""
    remote = "://" in entry
    magic = re.compile(r"[*\[]") if remote else re.compile(r"[*?\[]")
    if not magic.search(entry) or (not remote and Path(entry).exists()):
        return entry, ""
    address, question, query = entry.partition("?") if remote else (entry, "", "")
    parts = address.split("/")
    first = next((i for i, part in enumerate(parts) if magic.search(part)), len(parts))
    base = "/".join(parts[:first]) or ("/" if entry.startswith("/") else ".")
    return base + question + query, "/".join(parts[first:])


def _local_path(entry: str) -> str:
    path = unquote(urlsplit(entry).path) if entry.startswith("file://") else entry
    # Links are not resolved: their target may have a name without an extension.
    return os.path.abspath(Path(path).expanduser())  # noqa: PTH100


def _location(root: str, path: str) -> str:
    """A unique path of a file; a remote file has its scheme and no http query."""
    if not root:
        return path
    scheme = root.partition("://")[0]
    return path.partition("?")[0] if scheme in ("http", "https") else f"{scheme}://{path}"


def _short_names(locations: Iterable[str]) -> dict[str, str]:
    """The last two components of each location, or as many as it takes to make the name unique."""
    names: dict[str, str] = {}
    unnamed, depth = list(locations), 2
    while unnamed:
        candidates = {location: "/".join(location.split("/")[-depth:]) for location in unnamed}
        uses = Counter(candidates.values())
        names |= {location: name for location, name in candidates.items() if uses[name] == 1}
        unnamed = [location for location in unnamed if location not in names]
        depth += 1
    return names
