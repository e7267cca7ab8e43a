"""BM25 over an index that merging.py wrote, by memory map: exact, and without scoring every passage.

A query's terms are taken from the rarest to the most frequent. The highest score of each term is known, so
after every term it is known what the terms still to come can add at most, and passages that cannot reach the
k best any more are dropped, or never taken up (the idea of MaxScore, on whole arrays). The results are those
of adding up all postings. Nothing is kept between queries: any number of threads may search at once.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tools_service.passages import Hit
from tools_service.terms import analyze

# Bounds are compared with this much room, as sums of floats depend on their order.
_ROOM = 1e-9
# Passages scored in full before the search begins, to know what the k best have at least.
_TRIED = 2_048

_NOWHERE = np.empty(0, dtype=np.int64)

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


class Vocabulary:
    """Terms by number: sorted bytes in a mapped file, found by halving."""

    def __init__(self, folder: Path) -> None:
        self._starts = _opened(folder / "terms.npy")
        self._bytes = _mapped(folder / "terms.bin")

    def __len__(self) -> int:
        return len(self._starts) - 1

    def number(self, term: str) -> int | None:
        """The number of `term`; None if no passage holds it."""
        wanted = term.encode("utf-8", "replace")
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            found = self._bytes[self._starts[middle] : self._starts[middle + 1]]
            if found == wanted:
                return middle
            low, high = (middle + 1, high) if found < wanted else (low, middle)
        return None


class _List:
    """The postings of one term of a query: passages in order, their scores, the highest, the weight."""

    __slots__ = ("maximum", "passages", "scores", "weight")

    def __init__(
        self, passages: Int32s, scores: npt.NDArray[np.float32], maximum: float, weight: int
    ) -> None:
        self.passages, self.scores, self.weight = passages, scores, weight
        self.maximum = weight * maximum

    def add_to(self, totals: Floats, passages: Int32s) -> Places:
        """Add this term's scores to the `totals` of sorted `passages`; where in this list they stand."""
        if len(passages) <= len(self.passages):
            here = np.searchsorted(self.passages, passages)
            here[here == len(self.passages)] = 0
            there = np.flatnonzero(self.passages[here] == passages)
            here = here[there]
        else:
            there = np.searchsorted(passages, self.passages)
            there[there == len(passages)] = 0
            here = np.flatnonzero(passages[there] == self.passages)
            there = there[here]
        totals[there] += self.weight * self.scores[here].astype(np.float64)
        return here


class Bm25:
    """The postings of an index, opened by memory map."""

    def __init__(self, folder: Path) -> None:
        self.vocabulary = Vocabulary(folder)
        self._starts = _opened(folder / "starts.npy")
        self._passages = _opened(folder / "postings.npy")
        self._scores = _opened(folder / "scores.npy")
        self._maxima = _opened(folder / "maxima.npy")

    def search(self, query: str, k: int) -> list[Hit]:
        """The `k` best passages that share a term with `query`, best first; ties go to the earlier one."""
        return self.search_terms(analyze(query), k)

    def search_terms(self, terms: Sequence[str], k: int) -> list[Hit]:
        """As `search`; a term that comes twice counts twice."""
        lists = [
            self._list(number, weight)
            for term, weight in Counter(terms).items()
            if (number := self.vocabulary.number(term)) is not None
        ]
        if not lists or k < 1:
            return []
        passages, scores = _best(sorted(lists, key=lambda one: len(one.passages)), k)
        order = np.lexsort((passages, -scores))[:k]
        return [Hit(int(passages[n]), float(scores[n])) for n in order]

    def postings(self, term: str) -> tuple[Int32s, Float32s]:
        """The passages that hold `term`, in order, and its score in each."""
        number = self.vocabulary.number(term)
        if number is None:
            return np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32)
        one = self._list(number, 1)
        return one.passages, one.scores

    def _list(self, number: int, weight: int) -> _List:
        part = slice(int(self._starts[number]), int(self._starts[number + 1]))
        return _List(self._passages[part], self._scores[part], float(self._maxima[number]), weight)


def _best(lists: Sequence[_List], k: int) -> tuple[Int32s, Floats]:
    """Passages and scores, the `k` best among them; `lists` from the shortest to the longest."""
    to_come = [*np.cumsum([one.maximum for one in reversed(lists)])[::-1].tolist(), 0.0]
    floor = _floor(lists, k)
    passages, scores = np.empty(0, dtype=np.int32), np.empty(0)
    for n, one in enumerate(lists):
        known = one.add_to(scores, passages) if len(passages) else _NOWHERE
        need = floor - to_come[n + 1] - _ROOM
        if to_come[n] >= floor - _ROOM:
            passages, scores = _with_new(one, known, passages, scores, need)
        alive = scores >= need
        if not alive.all():
            passages, scores = passages[alive], scores[alive]
        if len(scores) >= k and n + 1 < len(lists):
            floor = max(floor, _kth(scores, k))
    return passages, scores


def _with_new(
    one: _List, known: Places, passages: Int32s, scores: Floats, need: float
) -> tuple[Int32s, Floats]:
    """Take up what is new in `one` and has what it will `need`; what stands at `known` is there already."""
    if need > 0:
        fresh = one.scores >= np.float32(need / one.weight * (1 - 1e-6))
    else:
        fresh = np.ones(len(one.scores), dtype=bool)
    fresh[known] = False
    at = np.flatnonzero(fresh)
    if not len(at):
        return passages, scores
    new, its = one.passages[at], one.weight * one.scores[at].astype(np.float64)
    if not len(passages):
        return new, its
    both, totals = np.concatenate([passages, new]), np.concatenate([scores, its])
    order = np.argsort(both, kind="stable")  # two sorted runs: merged in linear time
    return both[order], totals[order]


def _floor(lists: Sequence[_List], k: int) -> float:
    """A score that at least `k` passages reach; 0 where that is not known."""
    first = next((one for one in lists if len(one.passages) >= k), None)
    if first is None:
        return 0.0
    tried = max(_TRIED, k)
    if len(first.passages) > tried:
        at = np.sort(np.argpartition(first.scores, -tried)[-tried:])
    else:
        at = np.arange(len(first.passages))
    passages, scores = first.passages[at], first.weight * first.scores[at].astype(np.float64)
    for one in lists:
        if one is not first:
            one.add_to(scores, passages)
    return _kth(scores, k)


def _kth(scores: Floats, k: int) -> float:
    return float(np.partition(scores, -k)[-k])


def _opened(path: Path):  # type: ignore[no-untyped-def]
    # A plain view: indexing numpy.memmap costs several times as much.
    return np.load(path, mmap_mode="r").view(np.ndarray)


def _mapped(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
