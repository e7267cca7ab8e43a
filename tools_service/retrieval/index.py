"""The manifest of an index folder: what the index was built from, and whether it can be opened.

In: an index folder. Out: its manifest, or an error that says what to do. Files that were cut, or are
of another index, are found by their sizes and by the lengths of the arrays; no content is read.
indexing/build.py builds the folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from pydantic import ConfigDict

from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.files import read_json
from tools_service.base.fingerprint import FileState
from tools_service.base.ownership import OutputKind
from tools_service.base.settings import FileSize, Frozen, NotNegativeInt

MANIFEST = "manifest.json"
FORMAT = 2  # version of the files in an index folder; an index of another version is built again

# The arrays of an index, with their type, and the file or array whose length ends them.
_ARRAYS = {
    "passages.npy": "int64",
    "terms.npy": "int64",
    "starts.npy": "int64",
    "postings.npy": "int32",
    "scores.npy": "float32",
    "maxima.npy": "float32",
}
_BYTES = ("passages.bin", "terms.bin")
# What numpy raises where a header is damaged: it parses it as an expression of Python.
_DAMAGE = (OSError, ValueError, TypeError, EOFError, SyntaxError, TokenError, OverflowError, MemoryError)
INDEX_FILES = (*_BYTES, *_ARRAYS)
OPTION = "tools.wikisearch.index"

_PASSAGES = r"passages\.(bin|npy)"
_SEGMENT = rf"({_PASSAGES}|(lengths|frequencies|postings|counts)\.npy|terms\.txt|skipped\.jsonl)"
INDEX = OutputKind(
    name="an index",
    marks={MANIFEST: frozenset({"settings", "source", "passages"})},
    paths=(
        rf"manifest\.json(\.part)?|skipped\.jsonl|{_PASSAGES}|terms\.(bin|npy)",
        r"(starts|postings|scores|maxima)\.npy",
        r"vectors/|vectors/(index\.faiss|exact\.f16|probe\.npy)",
        rf"segments/|segments/\d{{6,}}/|segments/\d{{6,}}/{_SEGMENT}",
        r"offsets\.npy|bm25/|bm25/[\w.]+\.(npy|json|jsonl)",  # format 1
    ),
    core=frozenset(INDEX_FILES),
)
"""How to recognise an index, of any version of this program."""


class IndexFolderError(ConfigurationError):
    """An index cannot be opened, or its folder not be written; names it and what to do."""


class _IndexManifest(Frozen):
    """What is relied on of manifest.json."""

    model_config = ConfigDict(extra="allow")

    settings: dict[str, Any]
    source: list[FileState]
    passages: NotNegativeInt
    terms: NotNegativeInt
    files: dict[str, FileSize] = {}  # noqa: RUF012
    """Sizes in bytes, by path in the folder; earlier versions recorded none."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an index; IndexFolderError if it is missing or of another version."""
    return check_manifest(lambda: read_json(folder / MANIFEST), folder)


def check_manifest(read: Callable[[], Any], index: Path | str) -> dict[str, Any]:
    """The manifest of `index` that `read` gives; IndexFolderError as `read_manifest` raises it."""
    try:
        content = read()
        if content["settings"]["format"] != FORMAT:
            raise IndexFolderError(
                f"{OPTION}: {index} is of another version of this program; build it again with "
                "python -m tools_service index"
            )
        manifest = _IndexManifest.model_validate(content)
    except FileNotFoundError:
        raise IndexFolderError(
            f"{OPTION}: no index at {index}; build one with python -m tools_service index"
        ) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise IndexFolderError(
            f"{OPTION}: {index}/{MANIFEST} cannot be read ({brief(error)}); build the index again with "
            "python -m tools_service index"
        ) from error
    return manifest.model_dump()


def require_whole(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise IndexFolderError, naming the file, if files of an index are missing, cut or of another.

    `manifest` is that of `read_manifest`.
    """
    for name, size in manifest["files"].items():
        _require(folder, name, _size(folder / name) == size, f"has not the {size:,} bytes of the manifest")
    sizes = {name: _size(folder / name) for name in _BYTES}
    arrays = {name: load_array(folder / name, dtype) for name, dtype in _ARRAYS.items()}
    lengths = {
        "passages.npy": manifest["passages"] + 1,
        "terms.npy": manifest["terms"] + 1,
        "starts.npy": manifest["terms"] + 1,
        "maxima.npy": manifest["terms"],
    }
    for name, length in lengths.items():
        _require(folder, name, len(arrays[name]) == length, f"has not {length:,} entries")
    ends = {
        "passages.bin": (arrays["passages.npy"], sizes["passages.bin"]),
        "terms.bin": (arrays["terms.npy"], sizes["terms.bin"]),
        "postings.npy": (arrays["starts.npy"], len(arrays["postings.npy"])),
        "scores.npy": (arrays["starts.npy"], len(arrays["scores.npy"])),
    }
    for name, (starts, end) in ends.items():
        _require(folder, name, (starts[0], starts[-1]) == (0, end), f"ends at {end:,}, not at {starts[-1]:,}")


def damaged(path: Path, details: str) -> IndexFolderError:
    """The error for a file of an index that is not as it was built."""
    return IndexFolderError(
        f"{OPTION}: {path} is damaged ({details}); build the index again with python -m tools_service index"
    )


def _require(folder: Path, name: str, whole: bool, details: str) -> None:
    if not whole:
        raise damaged(folder / name, details)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else -1
    except OSError:
        return -1


def load_array(path: Path, dtype: str, *, dimensions: int = 1) -> Any:
    """An array file, opened by memory map. IndexFolderError if it is damaged or another array."""
    try:
        if not path.is_file():
            raise ValueError("no such file")
        array = np.load(path, mmap_mode="r")
        if not isinstance(array, np.memmap) or array.ndim != dimensions or array.dtype != dtype:
            raise ValueError(f"not an array of {dtype}")
        if path.stat().st_size != array.offset + array.nbytes:
            raise ValueError("has another size than its header says")
    except _DAMAGE as error:
        raise damaged(path, brief(error)) from error
    return array
