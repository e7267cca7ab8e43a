"""Which files a corpus consists of: files, folders, globs and URIs become a list of shards.

In: `CorpusConfig.paths`, and which slice of them. Out: one small, picklable `CorpusFile` per file, in the order
given and sorted within a folder or glob, so that any process of a cluster can open it. Local paths, and URIs
of every filesystem that pyarrow (s3, gs, hdfs, abfs, hf) or fsspec (memory, http, sftp, …) opens. Nothing of
a file's content is read here (documents.py does that). No Ray.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import unquote, urlsplit

import fsspec
import pyarrow as pa
import pyarrow.fs
from fsspec.utils import glob_translate

from pipeline.base.config import CorpusConfig
from tools_service.base.errors import ConfigurationError

logger = logging.getLogger(__name__)

Format = Literal["jsonl", "parquet", "text"]
Compression = Literal["", "gz", "zst"]

_FORMATS: dict[str, Format] = {
    "json": "jsonl",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "parquet": "parquet",
    "txt": "text",
}
_EXTENSION = re.compile(r"\.(json|jsonl|ndjson|txt)(?:\.(gz|zst))?$|\.(parquet)$", re.IGNORECASE)
KNOWN_EXTENSIONS = ".json .jsonl .ndjson .txt (each also with .gz or .zst), .parquet"


class CorpusError(ConfigurationError):
    """The corpus cannot be used at all: nothing found, not reachable, or no document in it can be read."""


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """One file of the corpus.

    `name` is the end of its path, at least the folder and the file: it is what `Document.source` shows and
    what text ids are made from, so it is the same from whichever directory and machine the corpus is named.
    `path` is the file within the filesystem that the URI `root` opens ("" is the local disk). `size` is in
    bytes, None where the filesystem does not tell.
    """

    name: str
    path: str
    root: str
    size: int | None

    @property
    def format(self) -> Format:
        return _FORMATS[self._extension()[0]]

    @property
    def compression(self) -> Compression:
        found = self._extension()[1]
        return next(known for known in get_args(Compression) if known == found)

    def _extension(self) -> tuple[str, str]:
        """Format and compression as the file's name spells them, in lower case."""
        match = _EXTENSION.search(self.name)
        if match is None:
            raise CorpusError(f"{self.name}: unknown kind of file; known are {KNOWN_EXTENSIONS}")
        return (match[1] or match[3]).lower(), (match[2] or "").lower()

    def open_stream(self) -> pa.NativeFile:
        """The raw bytes in order, nothing decompressed."""
        return _filesystem(self.root).open_input_stream(self.path, compression=None)

    def open_random(self) -> pa.NativeFile:
        """The raw bytes for reading at any place, as Parquet needs."""
        return _filesystem(self.root).open_input_file(self.path)


def list_files(config: CorpusConfig) -> list[CorpusFile]:
    """The files of the slice, of every file that `config.paths` names if there is none; each once.

    CorpusError if one of the paths leads to no file, or there are fewer files than slices.
    """
    shards = all_files(config)
    if config.slice is None:
        return shards
    index, of = config.part
    if of > len(shards):
        raise CorpusError(
            f"corpus.slice = {config.slice}: a slice has whole files, and there are only {len(shards)}; "
            "make fewer slices, or cut the files"
        )
    # By name, so that the order in which paths are given means nothing.
    return sorted(shards, key=lambda shard: shard.name)[index::of]


def all_files(config: CorpusConfig) -> list[CorpusFile]:
    """Every file that `config.paths` names, whatever the slice: what a file is called depends on all."""
    if not config.paths:
        raise CorpusError("corpus.paths: nothing named; give files, folders, globs or URIs")
    files: dict[str, tuple[str, str, int | None]] = {}
    for given in config.paths:
        for root, path, size in _expand(given):
            files.setdefault(_location(root, path), (root, path, size))
    names = _short_names(files)
    return [CorpusFile(names[location], path, root, size) for location, (root, path, size) in files.items()]


@functools.cache
def _filesystem(root: str) -> pyarrow.fs.FileSystem:
    return _resolve(root)[0] if root else pyarrow.fs.LocalFileSystem()


def _resolve(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The filesystem of a URI and the path within it; pyarrow's own filesystems first, then fsspec's."""
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid as not_of_arrow:
        if "Unrecognized filesystem type" not in str(not_of_arrow):
            raise
        remote, path = fsspec.core.url_to_fs(uri)
        filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(remote))
    return filesystem, path


def _expand(given: str) -> Iterator[tuple[str, str, int | None]]:
    """(root, path, size) of the files that one entry of `config.paths` stands for."""
    try:
        base, pattern = _split_glob(given)
        if "://" in base and not base.startswith("file://"):
            root, (filesystem, start) = base, _resolve(base)
        else:
            root, filesystem, start = "", pyarrow.fs.LocalFileSystem(), _local_path(base)
        info = filesystem.get_file_info(start)
        if info.type == pyarrow.fs.FileType.File and not pattern:
            yield _named_file(given, root, info)
            return
        listing = filesystem.get_file_info(
            pyarrow.fs.FileSelector(start, recursive=True, allow_not_found=True)
        )
    except (OSError, ValueError, ImportError, NotImplementedError) as error:
        raise CorpusError(f"{given}: cannot be opened: {error}") from error
    if info.type == pyarrow.fs.FileType.NotFound and not listing:
        raise CorpusError(f"{given}: no such file or folder")
    files = _corpus_files(given, start, pattern, listing)
    if not files:
        raise CorpusError(f"{given}: no corpus file found; known are {KNOWN_EXTENSIONS}")
    for file in files:
        yield root, file.path, file.size


def _named_file(given: str, root: str, info: pyarrow.fs.FileInfo) -> tuple[str, str, int | None]:
    if not _EXTENSION.search(_location(root, info.path)):
        raise CorpusError(f"{given}: unknown kind of file; known are {KNOWN_EXTENSIONS}")
    return root, info.path, info.size


def _corpus_files(
    given: str, start: str, pattern: str, listing: list[pyarrow.fs.FileInfo]
) -> list[pyarrow.fs.FileInfo]:
    """The files below `start` that the pattern selects, hidden ones and markers (`.x`, `_x`) left out."""
    wanted = re.compile(glob_translate(pattern)) if pattern else None
    files: list[pyarrow.fs.FileInfo] = []
    ignored: list[pyarrow.fs.FileInfo] = []
    for info in sorted(listing, key=lambda info: str(info.path)):
        parts = info.path[len(start) :].strip("/").split("/")
        if info.type != pyarrow.fs.FileType.File or any(part.startswith((".", "_")) for part in parts):
            continue
        # A pattern that matches a folder stands for everything in it.
        if wanted and not any(wanted.match("/".join(parts[:depth])) for depth in range(1, len(parts) + 1)):
            continue
        (files if _EXTENSION.search(info.path) else ignored).append(info)
    if ignored:
        shown = ", ".join(info.base_name for info in ignored[:5])
        logger.warning("%s: %d files of another kind are not read: %s", given, len(ignored), shown)
    return files


def _split_glob(given: str) -> tuple[str, str]:
    """The part before the first component with a wildcard, and the pattern below it ("" without one)."""
    remote = "://" in given
    magic = re.compile(r"[*\[]") if remote else re.compile(r"[*?\[]")
    if not magic.search(given) or (not remote and Path(given).exists()):
        return given, ""
    address, question, query = given.partition("?") if remote else (given, "", "")
    parts = address.split("/")
    first = next((i for i, part in enumerate(parts) if magic.search(part)), len(parts))
    base = "/".join(parts[:first]) or ("/" if given.startswith("/") else ".")
    return base + question + query, "/".join(parts[first:])


def _local_path(given: str) -> str:
    path = unquote(urlsplit(given).path) if given.startswith("file://") else given
    # Links are kept: what they point to may have a name without an extension.
    return os.path.abspath(Path(path).expanduser())  # noqa: PTH100


def _location(root: str, path: str) -> str:
    """What tells one file from another: the path, remote ones with their scheme and without an http query."""
    if not root:
        return path
    scheme = root.partition("://")[0]
    return path.partition("?")[0] if scheme in ("http", "https") else f"{scheme}://{path}"


def _short_names(locations: Iterable[str]) -> dict[str, str]:
    """The last two components of each location, and as many more where two do not tell it from another."""
    names: dict[str, str] = {}
    todo, depth = list(locations), 2
    while todo:
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for location in todo:
            groups["/".join(location.split("/")[-depth:])].append(location)
        names |= {same[0]: name for name, same in groups.items() if len(same) == 1}
        todo = [location for same in groups.values() if len(same) > 1 for location in same]
        depth += 1
    return names
