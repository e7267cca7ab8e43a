"""Segments become the index: passages in order, terms in alphabetical order, BM25 scores.

Everything is streamed. The result does not depend on how the passages were cut into segments.
Scores are computed in advance, as bm25s does (Lucene's variant, the same to the last bit):

    score(t, d) = idf(t) * tf / (k1 * (1 - b + b * |d| / mean |d|) + tf)
    idf(t)      = ln(1 + (N - df + .5) / (df + .5))

    passages.bin, passages.npy   the passages (retrieval/passages.py)
    terms.bin, terms.npy         the terms, sorted by their bytes; int64 [terms + 1]: where each begins
    starts.npy                   int64 [terms + 1]: where the postings of each term begin
    postings.npy, scores.npy     int32, float32 [postings], by term, then passage: passage and score
    maxima.npy                   float32 [terms]: the highest score of each term
"""

from __future__ import annotations

import heapq
import math
import resource
import shutil
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby, repeat
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from tools_service.indexing.segments import Segment

K1, B = 0.9, 0.4  # Anserini's, which the paper's BM25 baselines use

_RANGE_POSTINGS = 8 * 2**20
_SPARE_FILES = 64

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]


def merge(segments: Sequence[Segment], folder: Path) -> int:
    """Write the index of all segments, in order, into `folder`; return its number of terms."""
    _merge_passages(segments, folder)
    term_ids = _merge_terms(segments, folder)
    opened = [_OpenSegment(segment, ids) for segment, ids in zip(segments, term_ids, strict=True)]
    terms = 1 + max((int(segment.term_ids[-1]) for segment in opened if len(segment.term_ids)), default=-1)
    frequencies = np.zeros(terms, dtype=np.int64)
    for segment in opened:
        frequencies[segment.term_ids] += segment.frequencies
    starts = np.concatenate([[0], np.cumsum(frequencies)])
    np.save(folder / "starts.npy", starts)
    _merge_postings(opened, starts, folder)
    return terms


def _merge_passages(segments: Sequence[Segment], folder: Path) -> None:
    starts, size = [np.zeros(1, dtype=np.int64)], 0
    with (folder / "passages.bin").open("wb") as passages, (folder / "skipped.jsonl").open("wb") as skipped:
        for segment in segments:
            for name, target in (("passages.bin", passages), ("skipped.jsonl", skipped)):
                with (segment.folder / name).open("rb") as source:
                    shutil.copyfileobj(source, target, 2**20)
                (segment.folder / name).unlink()  # the disk holds the passages once
            starts.append(np.load(segment.folder / "passages.npy")[1:] + size)
            size = passages.tell()
    np.save(folder / "passages.npy", np.concatenate(starts))


def _merge_terms(segments: Sequence[Segment], folder: Path) -> list[array[int]]:
    """Write all terms; return for each segment the ids of its terms in the index."""
    term_ids = [array("i") for _ in segments]
    starts = array("q", [0])
    _raise_file_limit(len(segments))
    with ExitStack() as stack, (folder / "terms.bin").open("wb") as file:
        # The line break sorts below every letter and digit, so lines sort as terms do.
        sources = [
            zip(stack.enter_context((segment.folder / "terms.txt").open("rb")), repeat(number))
            for number, segment in enumerate(segments)
        ]
        merged = groupby(heapq.merge(*sources), key=itemgetter(0))
        for term_id, (line, occurrences) in enumerate(merged):
            starts.append(starts[-1] + file.write(line[:-1]))
            for _, number in occurrences:
                term_ids[number].append(term_id)
    np.save(folder / "terms.npy", np.frombuffer(starts, dtype=np.int64))
    return term_ids


def _raise_file_limit(files: int) -> None:
    """Raise this process's limit of open files, as far as allowed, to open `files` more at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = sum(1 for _ in Path("/dev/fd").iterdir()) + files + _SPARE_FILES
    if 0 <= soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed if hard < 0 else min(needed, hard), hard))


class _OpenSegment:
    """A segment during the merge: its arrays, and the ids that its terms have in the index.

    Postings and counts stay in their files, and none stays open: a memory map holds a file
    descriptor as long as it lives, and there may be thousands of segments.
    """

    def __init__(self, segment: Segment, term_ids: array[int]) -> None:
        self.term_ids = np.array(term_ids, dtype=np.int32)
        self.frequencies = np.load(segment.folder / "frequencies.npy")
        self.lengths = np.load(segment.folder / "lengths.npy")
        self.folder = segment.folder
        self.starts = np.concatenate([[0], np.cumsum(self.frequencies, dtype=np.int64)])
        self.first_passage = 0
        self.norms: npt.NDArray[np.float64] = np.empty(0)  # k1 * (1 - b + b * |d| / mean |d|)


def _merge_postings(segments: Sequence[_OpenSegment], starts: Int64s, folder: Path) -> None:
    """Write postings and scores, a range of terms at a time; `starts` [terms + 1]."""
    first_passages = np.concatenate([[0], np.cumsum([len(segment.lengths) for segment in segments])])
    passages = int(first_passages[-1])
    total_length = sum(int(segment.lengths.sum()) for segment in segments)
    mean = max(1, total_length) / max(1, passages)
    for segment, first_passage in zip(segments, first_passages.tolist(), strict=False):
        segment.first_passage = first_passage
        segment.norms = K1 * ((1 - B) + B * segment.lengths / mean)

    idf = _idf(np.diff(starts), passages)
    maxima = np.zeros(len(idf), dtype=np.float32)
    total = int(starts[-1])
    with (
        _create_array_file(folder / "postings.npy", np.int32, total) as postings_file,
        _create_array_file(folder / "scores.npy", np.float32, total) as scores_file,
    ):
        for first, last in _term_ranges(starts):
            range_starts = starts[first : last + 1] - starts[first]
            postings, scores = _merge_range(segments, first, last, range_starts, idf)
            maxima[first:last] = np.maximum.reduceat(scores, range_starts[:-1])
            postings.tofile(postings_file)
            scores.tofile(scores_file)
    np.save(folder / "maxima.npy", maxima)


def _merge_range(
    segments: Sequence[_OpenSegment], first: int, last: int, starts: Int64s, idf: Float32s
) -> tuple[Int32s, Float32s]:
    """Return passages and scores of the terms from `first` to `last` - 1; `starts` is relative."""
    postings = np.empty(starts[-1], dtype=np.int32)
    scores = np.empty(starts[-1], dtype=np.float32)
    next_free = starts[:-1].copy()  # where the next posting of each term goes
    for segment in segments:
        low, high = np.searchsorted(segment.term_ids, (first, last))
        if low == high:
            continue
        term_ids, frequencies = segment.term_ids[low:high], segment.frequencies[low:high]
        begin, end = segment.starts[low], segment.starts[high]
        passages = np.load(segment.folder / "postings.npy", mmap_mode="r")[begin:end]
        counts = np.load(segment.folder / "counts.npy", mmap_mode="r")[begin:end].astype(np.float32)

        # The postings of each term go behind those of earlier segments.
        in_range = term_ids - first
        shifts = next_free[in_range] - (segment.starts[low:high] - begin)
        at = np.repeat(shifts, frequencies) + np.arange(end - begin)
        postings[at] = passages + segment.first_passage
        scores[at] = np.repeat(idf[term_ids], frequencies) * (counts / (segment.norms[passages] + counts))
        next_free[in_range] += frequencies
    return postings, scores


def _idf(frequencies: Int64s, passages: int) -> Float32s:
    # math.log as in bm25s: numpy's differs in the last bit.
    distinct, inverse = np.unique(frequencies, return_inverse=True)
    logs = [math.log(1 + (passages - df + 0.5) / (df + 0.5)) for df in distinct.tolist()]
    return np.array(logs, dtype=np.float32)[inverse]


def _term_ranges(starts: Int64s) -> Iterator[tuple[int, int]]:
    """Yield ranges of terms with about _RANGE_POSTINGS postings; a more frequent term is alone."""
    first = 0
    while first < len(starts) - 1:
        last = int(np.searchsorted(starts, starts[first] + _RANGE_POSTINGS, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def _create_array_file(path: Path, dtype: type[np.generic], length: int) -> BinaryIO:
    """Open `path` for the items of a one-dimensional array, behind numpy's header."""
    file = path.open("wb")
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    header = {"descr": descr, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)
    return file
