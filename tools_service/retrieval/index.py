"""The index that WikiSearch and QA search: built once into a folder, opened by memory map (paper section 3,
Appendix A).

The folder holds the passages and the BM25 postings (merging.py), vectors if the retriever wants them
(dense.py), the lines that were skipped (skipped.jsonl) and manifest.json, which says what was indexed and
how. `ensure` builds it when it is missing, or when the source or the settings are no longer those of the
manifest. `build` streams: blocks of lines become segments, here or in tasks on Ray, segments are merged; the
index is the same either way. It appears under its name only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tools_service.config import WikiSearchConfig
from tools_service.retrieval.merging import K1, B, merge
from tools_service.retrieval.parallel import cluster, in_order
from tools_service.retrieval.passages import PASSAGE_WORDS
from tools_service.retrieval.segments import Segment, write_segment
from tools_service.retrieval.sources import Block, SourceError, read_blocks, source_files
from tools_service.retrieval.terms import ANALYSIS

logger = logging.getLogger(__name__)

# What determines the index besides its source and its vectors; a change of any of these rebuilds it.
SETTINGS: dict[str, str | int | float] = {
    "format": 2,
    **ANALYSIS,
    "bm25": "lucene",
    "k1": K1,
    "b": B,
    "passage_words": PASSAGE_WORDS,
}

# Sources from this size on are read by as many workers as there are CPUs, unless told otherwise.
_LARGE_BYTES = 2**30


class IndexFolderError(SourceError):
    """The index cannot be opened, or its folder not be written; names it and what to do."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index. IndexFolderError if there is none that can be opened."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        version = manifest["settings"]["format"]
    except FileNotFoundError:
        raise IndexFolderError(
            f"tools.wikisearch.index: no index at {folder}; build one with python -m tools_service index"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise IndexFolderError(
            f"tools.wikisearch.index: {folder}/manifest.json cannot be read ({error}); build the index again"
        ) from error
    if version != SETTINGS["format"]:
        raise IndexFolderError(
            f"tools.wikisearch.index: {folder} is of another version of this program; build it again with "
            "python -m tools_service index"
        )
    return dict(manifest)


def settings(config: WikiSearchConfig) -> dict[str, Any]:
    """What the manifest of an index for `config` says of how it was built."""
    if config.retriever == "bm25":
        return dict(SETTINGS)
    from tools_service.retrieval.dense import vector_settings

    return {**SETTINGS, **vector_settings(config)}


def ensure(config: WikiSearchConfig) -> Path:
    """The folder with an up-to-date index of the source: as it is, or built now."""
    files = source_files(config.source)
    try:
        found = read_manifest(config.index)
    except IndexFolderError as error:
        logger.info("building an index: %s", error)
    else:
        if settings(config).items() <= found["settings"].items() and _unchanged(found["source"], files):
            return config.index
        logger.warning("source or settings changed since %s was built: building it again", config.index)
    build(config)
    return config.index


def build(config: WikiSearchConfig, *, workers: int | None = None, progress: bool = True) -> dict[str, Any]:
    """Index the source into its folder, replacing what is there; returns the manifest.

    `workers` tasks at a time on Ray (the cluster this process is connected to, or a local one); 0 does it in
    this process; None decides by the source's size.
    """
    started = time.monotonic()
    files, folder = source_files(config.source), config.index
    if workers is None:
        large = sum(file.stat().st_size for file in files) >= _LARGE_BYTES
        workers = os.cpu_count() or 1 if large else 0
    _require_replaceable(folder)
    # Taken before anything is read: what changes under the build is noticed by the next `ensure`.
    fingerprints = [asdict(_fingerprint(file)) for file in files]
    work = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        counts = _write_index(config, files, work, workers, progress)
        manifest = {
            "settings": settings(config),
            "source": fingerprints,
            **counts,
            "seconds": round(time.monotonic() - started, 1),
        }
        (work / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _replace(folder, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def _write_index(
    config: WikiSearchConfig, files: Sequence[Path], work: Path, workers: int, progress: bool
) -> dict[str, Any]:
    with cluster(workers):
        blocks = tqdm(read_blocks(files), desc="blocks of the source", unit="", disable=not progress)
        numbered = ((block, work.resolve() / "segments" / f"{n:06}") for n, block in enumerate(blocks))
        segments = list(in_order(_segment_writer, numbered, workers=workers))
        skipped = sum((segment.skipped for segment in segments), Counter[str]())
        passages = sum(segment.passages for segment in segments)
        if not passages:
            raise SourceError(
                f"tools.wikisearch.source: no article in {', '.join(config.source)}, only {dict(skipped)}"
            )
        terms = merge(segments, work)
        shutil.rmtree(work / "segments")
        if config.retriever != "bm25":
            from tools_service.retrieval.dense import build_vectors

            build_vectors(config, work, workers=workers, progress=progress)
    return {
        "lines": sum(segment.lines for segment in segments),  # articles and skipped together
        "articles": sum(segment.articles for segment in segments),
        "passages": passages,
        "terms": terms,
        "skipped": dict(skipped),
    }


def _segment_writer() -> Callable[[Block, Path], Segment]:
    return write_segment


def _require_replaceable(folder: Path) -> None:
    if folder.exists() and not (folder / "manifest.json").is_file() and any(folder.iterdir()):
        raise IndexFolderError(
            f"tools.wikisearch.index: {folder} is not empty and not an index; name another folder"
        )


def _replace(folder: Path, work: Path) -> None:
    """Put `work` in the place of `folder`; who has the old one open keeps it until closing it."""
    _require_replaceable(folder)
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    work.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Fingerprint:
    name: str
    size: int
    mtime_ns: int
    sha256: str


def _fingerprint(file: Path) -> _Fingerprint:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    stat = file.stat()
    return _Fingerprint(file.name, stat.st_size, stat.st_mtime_ns, digest)


def _unchanged(known: list[dict[str, Any]], files: list[Path]) -> bool:
    """Same names and sizes; contents are only read where the modification time differs (a fresh checkout, a
    copy).
    """
    if [(one["name"], one["size"]) for one in known] != [(file.name, file.stat().st_size) for file in files]:
        return False
    return all(
        file.stat().st_mtime_ns == one["mtime_ns"] or _fingerprint(file).sha256 == one["sha256"]
        for one, file in zip(known, files, strict=True)
    )
