"""Segments become the index: passages in the source's order, terms in alphabetical order, BM25 scores.

Everything is streamed: terms by a merge of sorted files, postings in ranges of terms, passages by copying.
The result depends on the passages alone, not on how they were cut into segments. Scores are computed eagerly,
as bm25s does (Lucene's variant, the same operations in the same order: they are equal to the last bit):

    score(t, d) = idf(t) * tf / (k1 * (1 - b + b * |d| / mean |d|) + tf)
    idf(t)      = ln(1 + (N - df + .5) / (df + .5))

    passages.bin, passages.npy   the passages (passages.PassageStore)
    terms.bin, terms.npy         the terms, sorted by their bytes; int64 [terms + 1]: where each begins
    starts.npy                   int64 [terms + 1]: where the postings of each term begin
    postings.npy, scores.npy     int32, float32 [postings]: by term, then passage: the passage and its score
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
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tools_service.retrieval.segments import Segment

K1, B = 0.9, 0.4  # Anserini's, which the paper's BM25 baselines use

_RANGE_POSTINGS = 8 * 2**20
_OTHER_FILES = 256

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]


def merge(segments: Sequence[Segment], folder: Path) -> int:
    """Write the index of all segments' passages, in the segments' order, into `folder`; returns its number of
    terms.
    """
    _merge_passages(segments, folder)
    numbers = _merge_terms(segments, folder)
    parts = [_Part(segment, number) for segment, number in zip(segments, numbers, strict=True)]
    terms = 1 + max((int(part.numbers[-1]) for part in parts if len(part.numbers)), default=-1)
    frequencies = np.zeros(terms, dtype=np.int64)
    for part in parts:
        frequencies[part.numbers] += part.frequencies
    starts = np.concatenate([[0], np.cumsum(frequencies)])
    np.save(folder / "starts.npy", starts)
    _merge_postings(parts, starts, folder)
    return terms


def _merge_passages(segments: Sequence[Segment], folder: Path) -> None:
    starts, size = [np.zeros(1, dtype=np.int64)], 0
    with (folder / "passages.bin").open("wb") as texts, (folder / "skipped.jsonl").open("wb") as log:
        for segment in segments:
            for name, target in (("passages.bin", texts), ("skipped.jsonl", log)):
                with (segment.folder / name).open("rb") as part:
                    shutil.copyfileobj(part, target, 2**20)
            starts.append(np.load(segment.folder / "passages.npy")[1:] + size)
            size = texts.tell()
    np.save(folder / "passages.npy", np.concatenate(starts))


def _merge_terms(segments: Sequence[Segment], folder: Path) -> list[array[int]]:
    """Write all terms; for each segment, the numbers that its terms have among them."""
    numbers = [array("i") for _ in segments]
    starts = array("q", [0])
    _allow_files(len(segments))
    with ExitStack() as stack, (folder / "terms.bin").open("wb") as file:
        sources = [
            _numbered(stack.enter_context((segment.folder / "terms.txt").open("rb")), n)
            for n, segment in enumerate(segments)
        ]
        for number, (term, same) in enumerate(groupby(heapq.merge(*sources), key=itemgetter(0))):
            starts.append(starts[-1] + file.write(term[:-1]))
            for _, segment in same:
                numbers[segment].append(number)
    np.save(folder / "terms.npy", np.frombuffer(starts, dtype=np.int64))
    return numbers


def _allow_files(number: int) -> None:
    """Raise this process's own limit of open files, as far as it may: every segment is open at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < number + _OTHER_FILES:
        wanted = number + _OTHER_FILES
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(wanted, hard), hard))


def _numbered(lines: Iterator[bytes], segment: int) -> Iterator[tuple[bytes, int]]:
    # The line break sorts below every letter and digit, so lines sort as terms do.
    return ((line, segment) for line in lines)


class _Part:
    """One segment while it is merged: its arrays by memory map, its terms' numbers in the index."""

    def __init__(self, segment: Segment, numbers: array[int]) -> None:
        self.numbers = np.frombuffer(numbers, dtype=np.int32) if numbers else np.empty(0, dtype=np.int32)
        self.frequencies = np.load(segment.folder / "frequencies.npy")
        self.lengths = np.load(segment.folder / "lengths.npy")
        self.postings = np.load(segment.folder / "postings.npy", mmap_mode="r")
        self.counts = np.load(segment.folder / "counts.npy", mmap_mode="r")
        self.starts = np.concatenate([[0], np.cumsum(self.frequencies, dtype=np.int64)])


def _merge_postings(parts: Sequence[_Part], starts: Int64s, folder: Path) -> None:
    lengths = [part.lengths for part in parts]
    shifts = np.concatenate([[0], np.cumsum([len(one) for one in lengths])])
    passages = int(shifts[-1])
    mean = max(1, sum(int(one.sum()) for one in lengths)) / max(1, passages)
    norms = [K1 * ((1 - B) + B * one / mean) for one in lengths]
    idf = _idf(np.diff(starts), passages)
    maxima = np.zeros(len(idf), dtype=np.float32)
    with ExitStack() as stack:
        files = [
            stack.enter_context(_array_file(folder / name, dtype, int(starts[-1])))
            for name, dtype in (("postings.npy", np.int32), ("scores.npy", np.float32))
        ]
        for first, last in _ranges(starts):
            found = np.empty(starts[last] - starts[first], dtype=np.int32)
            scores = np.empty(len(found), dtype=np.float32)
            free = starts[first:last] - starts[first]  # where the next posting of each term goes
            for part, norm, shift in zip(parts, norms, shifts[:-1], strict=True):
                _place(part, (first, last), free, found, scores, idf, norm, int(shift))
            maxima[first:last] = np.maximum.reduceat(scores, starts[first:last] - starts[first])
            found.tofile(files[0])
            scores.tofile(files[1])
    np.save(folder / "maxima.npy", maxima)


def _place(
    part: _Part,
    terms: tuple[int, int],
    free: Int64s,
    found: npt.NDArray[np.int32],
    scores: Float32s,
    idf: Float32s,
    norm: Float64s,
    shift: int,
) -> None:
    """Put what `part` has of a range of terms where it belongs, behind the postings of earlier parts."""
    low, high = np.searchsorted(part.numbers, terms)
    if low == high:
        return
    numbers, frequencies = part.numbers[low:high], part.frequencies[low:high]
    begin, end = part.starts[low], part.starts[high]
    passages, counts = part.postings[begin:end], part.counts[begin:end].astype(np.float32)
    local = numbers - terms[0]
    at = np.repeat(free[local] - (part.starts[low:high] - begin), frequencies) + np.arange(end - begin)
    found[at] = passages + shift
    scores[at] = np.repeat(idf[numbers], frequencies) * (counts / (norm[passages] + counts))
    free[local] += frequencies


def _idf(frequencies: Int64s, passages: int) -> Float32s:
    # math.log of each frequency once: numpy's differs from it in the last bit, and bm25s uses math.log.
    distinct, inverse = np.unique(frequencies, return_inverse=True)
    logs = [math.log(1 + (passages - df + 0.5) / (df + 0.5)) for df in distinct.tolist()]
    return np.array(logs, dtype=np.float32)[inverse]


def _ranges(starts: Int64s) -> Iterator[tuple[int, int]]:
    """Ranges of terms with about _RANGE_POSTINGS postings each; a more frequent term is one of its own."""
    first = 0
    while first < len(starts) - 1:
        last = int(np.searchsorted(starts, starts[first] + _RANGE_POSTINGS, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def _array_file(path: Path, dtype: type[np.generic], length: int):  # type: ignore[no-untyped-def]
    """`path` opened for writing the items of one array, behind numpy's header."""
    file = path.open("wb")
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": (length,),
    }
    np.lib.format.write_array_header_1_0(file, header)
    return file
