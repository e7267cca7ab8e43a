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
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

import fsspec
import pyarrow as pa
import pyarrow.fs
from fsspec.utils import glob_translate

from pipeline.base.config import CorpusConfig
from tools_service.base.errors import ConfigurationError
from tools_service.base.folders import (
    NOT_REGULAR,
    OTHER_TYPE,
    Found,
    FoundFile,
    LeftOut,
    describe,
    find_below,
    unique,
)
from tools_service.base.printable import printable

logger = logging.getLogger(__name__)

Format = Literal["jsonl", "parquet", "text"]

_FORMATS: dict[str, Format] = {"parquet": "parquet", "txt": "text"}  # others are jsonl
_EXTENSION = re.compile(r"\.(json|jsonl|ndjson|txt)(?:\.(gz|zst))?$|\.(parquet)$", re.IGNORECASE)
KNOWN_EXTENSIONS = ".json .jsonl .ndjson .txt (each also with .gz or .zst), .parquet"


_MAX_LABEL = 1_000  # characters of a name in a row or message
_URI_CHARACTERS = "%/:@!$&()*+,;=~"


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
    def label(self) -> str:
        """The name in rows and messages: valid Unicode on one line, which a file name need not be."""
        return printable(self.name, _MAX_LABEL)

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
            raise CorpusError(f"{self.label}: unknown file type; supported are {KNOWN_EXTENSIONS}")
        return (match[1] or match[3]).lower(), (match[2] or "").lower()

    def open_stream(self) -> pa.NativeFile:
        """A stream of the raw bytes, without decompression."""
        if not self.root:
            return pa.OSFile(os.fsencode(self.path))
        return _filesystem(self.root).open_input_stream(self.path, compression=None)

    def open_random(self) -> pa.NativeFile:
        """The raw bytes with random access, for Parquet."""
        if not self.root:
            return pa.OSFile(os.fsencode(self.path))
        return _filesystem(self.root).open_input_file(self.path)


@dataclass(frozen=True, slots=True)
class CorpusListing:
    """The files of a corpus, and the paths that its entries name or match but that are not read."""

    files: list[CorpusFile]
    left_out: list[LeftOut]

    def what_is_left_out(self) -> tuple[str, ...]:
        """A sentence for each reason."""
        return tuple(describe(self.left_out))


def list_files(config: CorpusConfig) -> list[CorpusFile]:
    """The corpus files of the configured slice, or of the whole corpus without one; each file once.

    Warns of what is left out. Raises CorpusError if a path matches no file, or there are fewer files
    than slices.
    """
    listing = find_files(config)
    for sentence in listing.what_is_left_out():
        logger.warning("corpus.paths: %s", sentence)
    return files_of_slice(listing.files, config)


def files_of_slice(files: list[CorpusFile], config: CorpusConfig) -> list[CorpusFile]:
    """The files of the configured slice, of all files of a corpus. CorpusError as in `list_files`."""
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


def find_files(config: CorpusConfig) -> CorpusListing:
    """Every corpus file, whatever the slice, and what is left out.

    The name of a file depends on all other files. CorpusError if a path matches no file.
    """
    if not config.paths:
        raise CorpusError("corpus.paths is empty: give files, folders, globs or URIs")
    files: dict[str, tuple[str, FoundFile]] = {}
    left_out: dict[str, LeftOut] = {}
    seen: set[tuple[int, int] | str] = set()
    for entry in config.paths:
        root, found = _expand(entry)
        new = [file for file in found.files if _location(root, file.path) not in files]
        kept, second = unique(new, seen)
        files |= {_location(root, file.path): (root, file) for file in kept}
        left_out |= {_location(root, item.path): item for item in [*found.left_out, *second]}
    names = _short_names(files)
    return CorpusListing(
        [CorpusFile(names[place], file.path, root, file.size) for place, (root, file) in files.items()],
        [item for place, item in left_out.items() if place not in files],
    )


@functools.cache
def _filesystem(root: str) -> pyarrow.fs.FileSystem:
    return _resolve(root)[0]


def _resolve(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The filesystem of a URI (pyarrow's, else fsspec's) and the path within it."""
    try:
        filesystem, path = _from_uri(uri)
    except pa.ArrowInvalid as not_of_arrow:
        if "Unrecognized filesystem type" not in str(not_of_arrow):
            raise
        remote, path = fsspec.core.url_to_fs(uri)
        filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(remote))
    return filesystem, path


def _from_uri(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """As pyarrow does it, also if the path has brackets, spaces or letters of another script."""
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(uri)
        return filesystem, str(path)
    except pa.ArrowInvalid as error:
        if "Cannot parse URI" not in str(error):
            raise
    scheme, _, rest = uri.partition("://")
    address, question, query = rest.partition("?")
    host, slash, path = address.partition("/")
    path = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", path)  # "%41" stays as it is
    path, query = quote(path, safe=_URI_CHARACTERS), quote(query, safe=_URI_CHARACTERS + "?")
    filesystem, path = pyarrow.fs.FileSystem.from_uri(f"{scheme}://{host}{slash}{path}{question}{query}")
    return filesystem, str(path)


def _expand(entry: str) -> tuple[str, Found]:
    """The URI to open, "" for the local disk, and what an entry of `config.paths` matches."""
    shown = printable(entry, _MAX_LABEL)
    if not entry.strip() or entry.endswith("://"):
        raise CorpusError(f"corpus.paths: {entry!r} names nothing; is a variable of the shell unset?")
    try:
        is_remote = "://" in entry and not entry.startswith("file://")
        root, start, found = _expand_remote(entry) if is_remote else ("", *_expand_local(entry))
    except Exception as error:  # a URI leads to the code of any filesystem that is installed
        raise CorpusError(f"{shown}: cannot be opened: {printable(str(error), _MAX_LABEL)}") from error
    if found is None:
        raise CorpusError(f"{shown}: no such file or folder")
    if [item.path for item in found.left_out] == [start]:
        wrong_type = found.left_out[0].reason == OTHER_TYPE
        problem = f"unknown file type; supported are {KNOWN_EXTENSIONS}" if wrong_type else "no regular file"
        raise CorpusError(f"{shown}: {problem}")
    if not found.files:
        reasons = "".join(f"; {sentence}" for sentence in describe(found.left_out))
        raise CorpusError(f"{shown}: no corpus file found; supported are {KNOWN_EXTENSIONS}{reasons}")
    return root, found


def _expand_local(entry: str) -> tuple[str, Found | None]:
    """The path, without a pattern, and what it matches; None if there is no such path."""
    base, pattern = _split_glob(entry, lambda path: Path(_local_path(path)).exists())
    start = _local_path(base)
    try:
        status = os.stat(start)  # noqa: PTH116
    except FileNotFoundError:
        return start, None
    if stat.S_ISDIR(status.st_mode) or pattern:
        return start, find_below(start, _is_known_type, _matcher(start, pattern))
    if not stat.S_ISREG(status.st_mode):
        return start, Found(left_out=[LeftOut(start, NOT_REGULAR)])
    if not _is_known_type(start):
        return start, Found(left_out=[LeftOut(start, OTHER_TYPE)])
    return start, Found([FoundFile.of(start, status)])


def _expand_remote(entry: str) -> tuple[str, str, Found | None]:
    """The URI, the path within its filesystem, and what they match; None if there is no such path."""
    absent = pyarrow.fs.FileType.NotFound

    def exists(uri: str) -> bool:
        filesystem, path = _resolve(uri)
        return bool(filesystem.get_file_info(path).type != absent)

    base, pattern = _split_glob(entry, exists)
    filesystem, start = _resolve(base)
    info = filesystem.get_file_info(start)
    if info.type == pyarrow.fs.FileType.File and not pattern:
        if not _EXTENSION.search(_location(base, start)):
            return base, start, Found(left_out=[LeftOut(start, OTHER_TYPE)])
        return base, start, Found([FoundFile(start, info.size, _location(base, start))])
    below = pyarrow.fs.FileSelector(start, recursive=True, allow_not_found=True)
    listing = filesystem.get_file_info(below)
    if info.type == absent and not listing:
        return base, start, None
    found, matches = Found(), _matcher(start, pattern)
    for item in sorted(listing, key=lambda item: str(item.path)):
        parts = item.path[len(start) :].strip("/").split("/")
        is_hidden = any(part.startswith((".", "_")) for part in parts)
        if item.type != pyarrow.fs.FileType.File or is_hidden or not matches(item.path):
            continue
        if _is_known_type(item.path):
            found.files.append(FoundFile(item.path, item.size, _location(base, item.path)))
        else:
            found.left_out.append(LeftOut(item.path, OTHER_TYPE))
    return base, start, found


def _is_known_type(path: str) -> bool:
    return bool(_EXTENSION.search(path))


def _matcher(start: str, pattern: str) -> Callable[[str], bool]:
    """Whether a path below `start` matches. A pattern that matches a folder selects all in it."""
    if not pattern:
        return lambda path: True
    regex = re.compile(glob_translate(pattern))

    def matches(path: str) -> bool:
        parts = path[len(start) :].strip("/").split("/")
        prefixes = ("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        return any(map(regex.match, prefixes))

    return matches


def _split_glob(entry: str, exists: Callable[[str], bool]) -> tuple[str, str]:
    """The path before the first component with a wildcard, and the pattern after it, or "".

    A path that exists as it stands has no wildcards.
    """
    remote = "://" in entry
    magic = re.compile(r"[*\[]") if remote else re.compile(r"[*?\[]")
    if not magic.search(entry) or exists(entry):
        return entry, ""
    address, question, query = entry.partition("?") if remote else (entry, "", "")
    parts = address.split("/")
    first = next((i for i, part in enumerate(parts) if magic.search(part)), len(parts))
    base = "/".join(parts[:first]) or ("/" if entry.startswith("/") else ".")
    return base + question + query, "/".join(parts[first:])


def _local_path(entry: str) -> str:
    is_uri = entry.startswith("file://")
    path = unquote(urlsplit(entry.replace("#", "%23")).path) if is_uri else entry
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
