"""BM25 over an index that merging.py wrote, by memory map: exact, and without scoring every passage.

The highest score of each term is known. So once `k` passages are known to reach some score, the weakest terms
cannot lift a passage over it that has none of the others (MaxScore; Turtle and Flood 1995): the postings of
the strong terms are added up, a range of passages at a time, and only what can still be among the best is
looked up in those of the weak. The results are those of adding up all postings. Any number of threads may
search at once.
"""

from __future__ import annotations

import mmap
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tools_service.retrieval.passages import Hit
from tools_service.retrieval.terms import analyze

# Bounds are compared with this much room, as sums of floats depend on their order.
_ROOM = 1e-9
# Passages scored in full before the search begins, to know what the k best have at least.
_TRIED = 256
# Passages whose scores are added up at a time: the sums stay in a processor's cache.
_RANGE = 2**17

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
UnpaddedLayout = npt.NDArray[np.int64]


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

    __slots__ = ("edges", "maximum", "passages", "scores", "weight")

    def __init__(self, passages: Int32s, scores: Float32s, maximum: float, weight: int) -> None:
        self.passages, self.scores, self.weight = passages, scores, weight
        self.maximum = weight * maximum
        self.edges: list[int] = []  # where each range of passages begins, and the end

    def reaching(self, need: float, start: int) -> tuple[Int32s, Floats]:
        """The passages from place `start` on that this term alone gives what they `need`, and its scores."""
        least = np.float32(need / self.weight * (1 - 1e-6))  # below any score that is lost to rounding
        at = start + np.flatnonzero(self.scores[start:] >= least)
        return self.passages[at], self.weighed(at)

    def weighed(self, part: slice | UnpaddedLayout) -> Floats:
        """Scores as this query counts them."""
        return np.multiply(self.scores[part], self.weight, dtype=np.float64)

    def add_to(self, totals: Floats, passages: Int32s) -> None:
        """Add this term's scores to the `totals` of some `passages`."""
        at = np.searchsorted(self.passages, passages)
        at[at == len(self.passages)] = 0
        known = np.flatnonzero(self.passages[at] == passages)
        totals[known] += self.weighed(at[known])


class Bm25:
    """The postings of an index, opened by memory map."""

    def __init__(self, folder: Path) -> None:
        self.vocabulary = Vocabulary(folder)
        self._starts = _opened(folder / "starts.npy")
        self._passages = _opened(folder / "postings.npy")
        self._scores = _opened(folder / "scores.npy")
        self._maxima = _opened(folder / "maxima.npy")
        self._total = len(_opened(folder / "passages.npy")) - 1
        self._own = threading.local()

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
        # Sums are formed in this order whatever is left out, so equal passages have equal scores.
        lists.sort(key=lambda one: -one.maximum)
        passages, scores = self._best(lists, k)
        order = np.lexsort((passages, -scores))[:k]
        return [Hit(int(passages[n]), float(scores[n])) for n in order]

    def _best(self, lists: Sequence[_List], k: int) -> tuple[Int32s, Floats]:
        """Passages and scores, the `k` best among them; `lists` from the strongest to the weakest."""
        # int32 as the postings are: searchsorted would copy them otherwise
        edges = np.arange(0, self._total + _RANGE, _RANGE, dtype=np.int32)
        for one in lists:
            one.edges = np.searchsorted(one.passages, edges).tolist()
        weaker = [*np.cumsum([one.maximum for one in reversed(lists)])[::-1].tolist(), 0.0]
        floor = _floor(lists, k)
        passages, scores = np.empty(0, dtype=np.int32), np.empty(0)
        number = 0
        while number < len(edges) - 1:
            strong = next(n for n, most in enumerate(weaker) if most < floor - _ROOM or n == len(lists))
            need = floor - weaker[strong] - _ROOM
            if strong == 1:
                found, sums = lists[0].reaching(need, lists[0].edges[number])
                number = len(edges) - 1
            else:
                found, sums = self._added(lists[:strong], number, need)
                number += 1
            for n in range(strong, len(lists)):
                lists[n].add_to(sums, found)
                reaching = sums >= floor - weaker[n + 1] - _ROOM
                found, sums = found[reaching], sums[reaching]
            if len(found):
                passages, scores = np.concatenate([passages, found]), np.concatenate([scores, sums])
                if len(scores) >= k:
                    floor = max(floor, _kth(scores, k))
        return passages, scores

    def _added(self, lists: Sequence[_List], number: int, need: float) -> tuple[Int32s, Floats]:
        """The passages of one range that the postings of `lists` give what they `need`, and their sums."""
        totals: Floats | None = getattr(self._own, "totals", None)  # all zero between uses
        if totals is None:
            totals = self._own.totals = np.zeros(_RANGE)
        places = []
        for one in lists:
            part = slice(one.edges[number], one.edges[number + 1])
            places.append(one.passages[part] - np.int32(number * _RANGE))
            totals[places[-1]] += one.weighed(part)
        found, sums = [], []
        for at in places:
            its = totals[at]
            totals[at] = 0.0  # so that no passage is found twice
            reaching = np.flatnonzero(its >= max(need, _ROOM))
            found.append(at[reaching] + np.int32(number * _RANGE))
            sums.append(its[reaching])
        return np.concatenate(found), np.concatenate(sums)

    def postings(self, term: str) -> tuple[Int32s, Float32s]:
        """The passages that hold `term`, in order, and its score in each."""
        number = self.vocabulary.number(term)
        if number is None:
            return np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32)
        one = self._list(number, 1)
        return one.passages, one.scores

    def matrix(self) -> dict[str, Any]:
        """All postings as bm25s holds them: compressed sparse columns, one a term."""
        return {
            "data": self._scores,
            "indices": self._passages,
            "indptr": self._starts,
            "num_docs": self._total,
        }

    def _list(self, number: int, weight: int) -> _List:
        part = slice(int(self._starts[number]), int(self._starts[number + 1]))
        return _List(self._passages[part], self._scores[part], float(self._maxima[number]), weight)


def _floor(lists: Sequence[_List], k: int) -> float:
    """A score that at least `k` passages reach; 0 where that is not known."""
    first = next((one for one in lists if len(one.passages) >= k), None)
    if first is None:
        return 0.0
    tried = min(max(_TRIED, k), len(first.passages))
    at = np.sort(np.argpartition(first.scores, -tried)[-tried:])
    passages, scores = first.passages[at], first.weighed(at)
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
