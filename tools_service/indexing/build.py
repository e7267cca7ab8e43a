"""Builds the index that WikiSearch and QA search (paper section 3, Appendix A).

In: files of articles (sources.py). Out: an index folder with passages and BM25 postings
(merging.py), vectors if the retriever needs them (vectors.py), skipped lines (skipped.jsonl) and
manifest.json with source, settings and counts. Blocks of lines become segments, here or on Ray, and
segments are merged; the index is the same either way. The folder appears when it is complete.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tools_service.base.cpus import available_cpus
from tools_service.base.files import atomic_write
from tools_service.base.fingerprint import FileState
from tools_service.base.locks import output_lock
from tools_service.base.ownership import replacing_folder, require_own
from tools_service.base.printable import printable
from tools_service.config import WikiSearchConfig
from tools_service.indexing.merging import K1, B, merge
from tools_service.indexing.parallel import map_in_order, ray_for_workers
from tools_service.indexing.segments import write_segment
from tools_service.indexing.sources import SourceError, read_blocks, source_files
from tools_service.retrieval.index import (
    FORMAT,
    INDEX,
    MANIFEST,
    OPTION,
    IndexFolderError,
    read_manifest,
    require_whole,
)
from tools_service.retrieval.passages import PASSAGE_WORDS
from tools_service.retrieval.terms import ANALYSIS

logger = logging.getLogger(__name__)

# What determines the index besides source and vectors; another value rebuilds it.
SETTINGS: dict[str, str | int | float] = {
    "format": FORMAT,
    **ANALYSIS,
    "bm25": "lucene",
    "k1": K1,
    "b": B,
    "passage_words": PASSAGE_WORDS,
}

# Sources of at least this size are read by as many workers as there are CPUs, by default.
_LARGE_BYTES = 2**30


def index_settings(config: WikiSearchConfig) -> dict[str, Any]:
    """Return the settings that the manifest of an index for `config` records."""
    if config.retriever == "bm25":
        return dict(SETTINGS)
    from tools_service.indexing.vectors import vector_settings

    return {**SETTINGS, **vector_settings(config)}


def ensure_index(config: WikiSearchConfig) -> Path | str:
    """Return the index's folder. Build the index if it is missing or source or settings changed.

    If another process is building it, wait, and use that one. An index at a URI is not built:
    IndexFolderError if it is not of this source and these settings.
    """
    files = source_files(config.source)
    if not isinstance(config.index, Path):
        _require_current(config, config.index, files)
    elif not _is_current(config, files):
        require_own(config.folder, INDEX, OPTION)
        with output_lock(config.folder, wait=True):
            if not _is_current(config, files):
                _build_index(config, None, progress=True)
    return config.index


def _require_current(config: WikiSearchConfig, uri: str, files: list[Path]) -> None:
    from tools_service.retrieval.local_copy import StoredIndex  # imports pyarrow

    if not _is_of(StoredIndex.at(uri).manifest(), config, files):
        raise IndexFolderError(
            f"{OPTION}: {uri} was built from another source or with other settings; build the index in a "
            "folder and copy it there, or leave out tools.wikisearch.source"
        )


def _is_current(config: WikiSearchConfig, files: list[Path]) -> bool:
    try:
        manifest = read_manifest(config.folder)
        require_whole(config.folder, manifest)
    except IndexFolderError as error:
        logger.info("building an index: %s", error)
        return False
    if _is_of(manifest, config, files):
        return True
    logger.warning("source or settings changed since %s was built: building it again", config.folder)
    return False


def _is_of(manifest: dict[str, Any], config: WikiSearchConfig, files: list[Path]) -> bool:
    """Whether an index was built from these files with these settings."""
    same_settings = index_settings(config).items() <= manifest["settings"].items()
    return same_settings and _is_unchanged(manifest["source"], files)


def build_index(
    config: WikiSearchConfig, *, workers: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Index the source into its folder, which is replaced, and return the manifest.

    `workers` is a number of processes on Ray (the cluster this process is connected to, or a local
    one); 0 stays in this process; None decides by the size of the source. Raises SourceError if the
    source cannot be used, NotOwnError if the folder is not empty and not an index, and
    OutputInUseError if another process is building it.
    """
    source_files(config.source)
    require_own(config.folder, INDEX, OPTION)
    with output_lock(config.folder):
        return _build_index(config, workers, progress=progress)


def _build_index(config: WikiSearchConfig, workers: int | None, *, progress: bool) -> dict[str, Any]:
    """`build_index`, for the holder of the lock."""
    started = time.monotonic()
    files, folder = source_files(config.source), config.folder
    if workers is None:
        is_large = sum(file.stat().st_size for file in files) >= _LARGE_BYTES
        workers = available_cpus() if is_large else 0
    # Recorded before anything is read: the next `ensure_index` notices a change during the build.
    source = [asdict(FileState.of(file, contents=True)) for file in files]
    with replacing_folder(folder, INDEX, OPTION) as staging:
        counts = _write_index(config, files, staging, workers, progress)
        manifest = {
            "settings": index_settings(config),
            "source": source,
            **counts,
            "files": _sizes(staging),
            "seconds": round(time.monotonic() - started, 1),
        }
        atomic_write(staging / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return manifest


def _write_index(
    config: WikiSearchConfig, files: Sequence[Path], folder: Path, workers: int, progress: bool
) -> dict[str, Any]:
    """Write everything but the manifest into `folder`; return the counts for the manifest."""
    segments_folder = folder / "segments"
    with ray_for_workers(workers):
        blocks = tqdm(read_blocks(files), desc="blocks of the source", unit="", disable=not progress)
        calls = ((block, segments_folder / f"{number:06}") for number, block in enumerate(blocks))
        segments = list(map_in_order(lambda: write_segment, calls, workers=workers))
        skipped = sum((segment.skipped for segment in segments), Counter[str]())
        passages = sum(segment.passages for segment in segments)
        if not passages:
            raise SourceError(
                f"tools.wikisearch.source: no article in {printable(', '.join(config.source), 1_000)}, only "
                f"{dict(skipped)}; wanted are jsonl with title and text, or tsv with id, text, title"
            )
        terms = merge(segments, folder)
        shutil.rmtree(segments_folder)
        if config.retriever != "bm25":
            from tools_service.indexing.vectors import build_vectors

            build_vectors(config, folder, workers=workers, progress=progress)
    return {
        "lines": sum(segment.lines for segment in segments),  # articles and skipped together
        "articles": sum(segment.articles for segment in segments),
        "passages": passages,
        "terms": terms,
        "skipped": dict(skipped),
    }


def _sizes(folder: Path) -> dict[str, int]:
    """The sizes in bytes of the files below `folder`, by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _is_unchanged(recorded: list[dict[str, Any]], files: list[Path]) -> bool:
    states = [FileState(**entry) for entry in recorded]
    return len(states) == len(files) and all(map(FileState.matches, states, files))
