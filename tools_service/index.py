"""WikiSearch's index: BM25 over passages, built once into a folder, opened by memory map (paper section 3,
Appendix A).

The folder holds bm25s's score matrix and vocabulary (`bm25/`), the passages (`passages.bin`, `offsets.npy`),
the lines that were skipped (`skipped.jsonl`) and `manifest.json`, which says what was indexed and how.
`ensure` builds it when it is missing, or when the source or the settings are no longer those of the manifest;
a build appears under its name only when it is complete. The arrays are never read whole, so the replicas of a
node share their pages.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import Stemmer
from bm25s.stopwords import STOPWORDS_EN
from tqdm import tqdm

from tools_service.config import WikiSearchConfig
from tools_service.encyclopedia import (
    PASSAGE_WORDS,
    EncyclopediaError,
    Skipped,
    passages,
    read_articles,
    source_files,
)

logger = logging.getLogger(__name__)

# What determines the index besides its source; a change of any of these rebuilds it.
SETTINGS: dict[str, str | int | float] = {
    "format": 1,
    "word": "two or more letters or digits",
    "bm25": "lucene",
    "k1": 0.9,
    "b": 0.4,
    "stemmer": "english",
    "stop_words": "lucene",
    "passage_words": PASSAGE_WORDS,
}

_WORD = re.compile(r"[^\W_]{2,}")  # single characters (initials, list numbers) cost precision
_STOP_WORDS = frozenset(STOPWORDS_EN)


def analyze(text: str, stemmer: Stemmer.Stemmer) -> list[str]:
    """The terms of a passage or a query: words of two characters or more, lower case, no stop words, Snowball
    stems.
    """
    words = [word for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS]
    return list(stemmer.stemWords(words))


@dataclass(frozen=True, slots=True)
class Hit:
    """One passage found: its number and its BM25 score."""

    passage: int
    score: float


class SearchIndex:
    """An index opened by memory map."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "manifest.json").is_file():
            raise EncyclopediaError(
                f"tools.wikisearch.index: no index at {folder}; build one with python -m tools_service index"
            )
        self._bm25 = bm25s.BM25.load(folder / "bm25", mmap=True, show_progress=False)
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")  # passages + 1
        self._passages = np.memmap(folder / "passages.bin", dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def passage(self, number: int) -> str:
        """``Title > text`` of one passage."""
        start, end = self._offsets[number : number + 2]
        return bytes(self._passages[start:end]).decode("utf-8")

    def search(self, query: str, k: int) -> list[Hit]:
        """The `k` best passages that share a term with `query`, best first; the earlier passage wins a
        tie.
        """
        # A stemmer keeps state while it works, so threads must not share one.
        terms = self._bm25.get_tokens_ids(analyze(query, Stemmer.Stemmer("english")))
        if not terms:
            return []
        scores = self._bm25.get_scores_from_ids(terms)  # float32, one per passage
        if k == 1:
            best = np.argmax(scores, keepdims=True)
        elif k < len(scores):
            threshold = np.partition(scores, -k)[-k]
            candidates = np.flatnonzero(scores >= threshold)
            best = candidates[np.argsort(-scores[candidates], kind="stable")][:k]
        else:
            best = np.argsort(-scores, kind="stable")
        return [Hit(int(n), float(scores[n])) for n in best if scores[n] > 0]


def ensure(config: WikiSearchConfig) -> Path:
    """The folder with an up-to-date index of the source: as it is, or built now."""
    files, folder = source_files(config.source), config.index
    manifest = folder / "manifest.json"
    if manifest.is_file():
        found = json.loads(manifest.read_text(encoding="utf-8"))
        if found["settings"] == SETTINGS and _unchanged(found["source"], files):
            return folder
        logger.warning(
            "the encyclopedia or the settings changed since %s was built: building it again", folder
        )
    build(config)
    return folder


def build(config: WikiSearchConfig, *, progress: bool = True) -> dict[str, Any]:
    """Index the source into its folder, replacing what is there; returns the manifest."""
    started = time.monotonic()
    files, folder = source_files(config.source), config.index
    work = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        counts = _write_index(files, work, progress=progress)
        if not counts["passages"]:
            raise EncyclopediaError(
                f"tools.wikisearch.source: no article in {', '.join(config.source)}, only {counts['skipped']}"
            )
        manifest = {
            "settings": SETTINGS,
            "source": [asdict(_fingerprint(file)) for file in files],
            **counts,
            "bm25s": bm25s.__version__,
            "seconds": round(time.monotonic() - started, 1),
        }
        (work / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _replace(folder, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def _write_index(files: list[Path], work: Path, *, progress: bool) -> dict[str, Any]:
    stemmer = Stemmer.Stemmer("english")
    vocabulary: dict[str, int] = {}
    term_ids: list[array[int]] = []  # one array per passage: a quarter of what lists would take
    offsets = array("Q", [0])
    skipped: Counter[str] = Counter()
    articles = 0
    with (
        (work / "passages.bin").open("wb") as texts,
        (work / "skipped.jsonl").open("w", encoding="utf-8") as log,
    ):
        for item in tqdm(read_articles(files), desc="articles", unit="", disable=not progress):
            if isinstance(item, Skipped):
                skipped[item.reason] += 1
                log.write(json.dumps(asdict(item)) + "\n")
                continue
            articles += 1
            for passage in passages(item.text):
                terms = analyze(f"{item.title} {passage}", stemmer)
                term_ids.append(array("I", [vocabulary.setdefault(term, len(vocabulary)) for term in terms]))
                texts.write(f"{item.title} > {passage}".encode("utf-8", "replace"))
                offsets.append(texts.tell())
    if term_ids:
        _write_bm25(term_ids, vocabulary, work / "bm25", progress=progress)
        np.save(work / "offsets.npy", np.asarray(offsets, dtype=np.uint64))
    return {
        "articles": articles,
        "passages": len(term_ids),
        "terms": len(vocabulary),
        "skipped": dict(skipped),
    }


def _write_bm25(
    term_ids: Iterable[array[int]], vocabulary: dict[str, int], folder: Path, *, progress: bool
) -> None:
    vocabulary.setdefault("", len(vocabulary))  # bm25s's term of passages without terms
    bm25 = bm25s.BM25(method=str(SETTINGS["bm25"]), k1=SETTINGS["k1"], b=SETTINGS["b"])
    bm25.index((term_ids, vocabulary), show_progress=progress)
    bm25.save(folder, show_progress=False)


def _replace(folder: Path, work: Path) -> None:
    """Put `work` in the place of `folder`; who has the old one open keeps it until closing it."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        if not (folder / "manifest.json").is_file() and any(folder.iterdir()):
            raise EncyclopediaError(
                f"tools.wikisearch.index: {folder} is not empty and not an index; name another folder"
            )
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
