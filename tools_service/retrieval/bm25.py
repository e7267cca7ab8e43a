"""BM25 over an index that indexing/merging.py wrote: exact, without scoring every passage.

The search is MaxScore (Turtle and Flood 1995), with the highest score of each term. Once `k`
passages reach a threshold, passages with only the weakest query terms cannot. So the postings of
the strong ("essential") terms are added up, a block of passages at a time, and only passages that
can still reach the threshold are looked up in the weak terms' postings. The index is opened by
memory map; threads may search at once.
"""

from __future__ import annotations

import mmap
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tools_service.retrieval.passages import Hit
from tools_service.retrieval.terms import analyze

_TOLERANCE = 1e-9  # for bounds: sums of floats depend on their order
_SEED_PASSAGES = 256  # scored in full before the search, for a first threshold
_BLOCK_PASSAGES = 2**17  # added up at a time: the sums fit a processor's cache

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]


class Vocabulary:
    """The ids of terms: sorted bytes in a mapped file, found by binary search."""

    def __init__(self, folder: Path) -> None:
        self._starts = _open_array(folder / "terms.npy")
        self._bytes = _map_file(folder / "terms.bin")

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, term_id: int) -> bytes:
        return self._bytes[self._starts[term_id] : self._starts[term_id + 1]]

    def term_id(self, term: str) -> int | None:
        """Return the id of `term`; None if no passage holds it."""
        key = term.encode("utf-8", "replace")
        term_id = bisect_left(self, key)
        return term_id if term_id < len(self) and self[term_id] == key else None


class _PostingList:
    """The postings of one query term. `weight` is how often the query has the term."""

    __slots__ = ("block_starts", "max_score", "passages", "scores", "weight")

    def __init__(self, passages: Int32s, scores: Float32s, max_score: float, weight: int) -> None:
        self.passages, self.scores, self.weight = passages, scores, weight  # passages ascend
        self.max_score = weight * max_score
        self.block_starts: list[int] = []  # where each block of passages begins, and the end

    def at_least(self, score: float, start: int) -> tuple[Int32s, Float64s]:
        """Return passages, from posting `start` on, with at least `score` by this term alone."""
        lower_bound = np.float32(score / self.weight * (1 - 1e-6))  # below any rounding of float32
        at = start + np.flatnonzero(self.scores[start:] >= lower_bound)
        return self.passages[at], self.weighted_scores(at)

    def weighted_scores(self, at: slice | Int64s) -> Float64s:
        """Return the scores of some postings in this query."""
        return np.multiply(self.scores[at], self.weight, dtype=np.float64)

    def add_to(self, totals: Float64s, passages: Int32s) -> None:
        """Add this term's scores to the `totals` of some `passages`."""
        at = np.searchsorted(self.passages, passages)
        at[at == len(self.passages)] = 0
        present = np.flatnonzero(self.passages[at] == passages)
        totals[present] += self.weighted_scores(at[present])


class Bm25:
    """The postings of an index, opened by memory map."""

    def __init__(self, folder: Path) -> None:
        self.vocabulary = Vocabulary(folder)
        self._starts = _open_array(folder / "starts.npy")
        self._passages = _open_array(folder / "postings.npy")
        self._scores = _open_array(folder / "scores.npy")
        self._max_scores = _open_array(folder / "maxima.npy")
        self._total = len(_open_array(folder / "passages.npy")) - 1
        self._thread_local = threading.local()

    def search(self, query: str, k: int) -> list[Hit]:
        """Return the `k` best passages with a term of `query`; ties go to the earlier passage."""
        return self.search_terms(analyze(query), k)

    def search_terms(self, terms: Sequence[str], k: int) -> list[Hit]:
        """Search for `terms` as `search` does; a repeated term counts repeatedly."""
        lists = [
            self._posting_list(term_id, weight)
            for term, weight in Counter(terms).items()
            if (term_id := self.vocabulary.term_id(term)) is not None
        ]
        if not lists or k < 1:
            return []
        # Every score is summed in this order, so that equal passages have equal scores.
        lists.sort(key=lambda postings: -postings.max_score)
        passages, scores = self._candidates(lists, k)
        order = np.lexsort((passages, -scores))[:k]
        return [Hit(int(passages[n]), float(scores[n])) for n in order]

    def _candidates(self, lists: Sequence[_PostingList], k: int) -> tuple[Int32s, Float64s]:
        """Return passages and scores, the `k` best among them; `lists` go from strong to weak."""
        # int32 as the postings: searchsorted would copy them otherwise.
        edges = np.arange(0, self._total + _BLOCK_PASSAGES, _BLOCK_PASSAGES, dtype=np.int32)
        for postings in lists:
            postings.block_starts = np.searchsorted(postings.passages, edges).tolist()

        # upper_bounds[n]: the highest score that lists n, n + 1, ... can give together.
        weakest_first = [postings.max_score for postings in reversed(lists)]
        upper_bounds = [*np.cumsum(weakest_first)[::-1].tolist(), 0.0]

        threshold = _initial_threshold(lists, k)
        passages, scores = np.empty(0, dtype=np.int32), np.empty(0)
        block = 0
        while block < len(edges) - 1:
            # The number of essential lists: without them no passage reaches the threshold.
            essential = next(
                n for n, bound in enumerate(upper_bounds) if bound < threshold - _TOLERANCE or n == len(lists)
            )
            needed = threshold - upper_bounds[essential] - _TOLERANCE
            if essential == 1:  # all remaining blocks at once
                candidates, sums = lists[0].at_least(needed, lists[0].block_starts[block])
                block = len(edges) - 1
            else:
                candidates, sums = self._sum_block(lists[:essential], block, needed)
                block += 1
            for n in range(essential, len(lists)):
                lists[n].add_to(sums, candidates)
                reachable = sums >= threshold - upper_bounds[n + 1] - _TOLERANCE
                candidates, sums = candidates[reachable], sums[reachable]
            if len(candidates):
                passages, scores = np.concatenate([passages, candidates]), np.concatenate([scores, sums])
                if len(scores) >= k:
                    threshold = max(threshold, _kth_best(scores, k))
        return passages, scores

    def _sum_block(self, lists: Sequence[_PostingList], block: int, needed: float) -> tuple[Int32s, Float64s]:
        """Return the passages of a block with at least the score `needed` by `lists`."""
        totals: Float64s | None = getattr(self._thread_local, "totals", None)  # all zero between uses
        if totals is None:
            totals = self._thread_local.totals = np.zeros(_BLOCK_PASSAGES)
        first_passage = np.int32(block * _BLOCK_PASSAGES)
        offsets = []
        for postings in lists:
            part = slice(postings.block_starts[block], postings.block_starts[block + 1])
            offsets.append(postings.passages[part] - first_passage)
            totals[offsets[-1]] += postings.weighted_scores(part)

        passages, sums = [], []
        for at in offsets:
            block_sums = totals[at]
            totals[at] = 0.0  # so that no passage is returned twice
            kept = np.flatnonzero(block_sums >= max(needed, _TOLERANCE))
            passages.append(at[kept] + first_passage)
            sums.append(block_sums[kept])
        return np.concatenate(passages), np.concatenate(sums)

    def postings(self, term: str) -> tuple[Int32s, Float32s]:
        """Return the passages that hold `term`, in order, and its score in each."""
        term_id = self.vocabulary.term_id(term)
        if term_id is None:
            return np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32)
        postings = self._posting_list(term_id, 1)
        return postings.passages, postings.scores

    def _posting_list(self, term_id: int, weight: int) -> _PostingList:
        part = slice(int(self._starts[term_id]), int(self._starts[term_id + 1]))
        max_score = float(self._max_scores[term_id])
        return _PostingList(self._passages[part], self._scores[part], max_score, weight)


def _initial_threshold(lists: Sequence[_PostingList], k: int) -> float:
    """Return a score that at least `k` passages reach, 0 if none is known."""
    seed_list = next((postings for postings in lists if len(postings.passages) >= k), None)
    if seed_list is None:
        return 0.0
    count = min(max(_SEED_PASSAGES, k), len(seed_list.passages))
    at = np.sort(np.argpartition(seed_list.scores, -count)[-count:])
    passages, scores = seed_list.passages[at], seed_list.weighted_scores(at)
    for postings in lists:
        if postings is not seed_list:
            postings.add_to(scores, passages)
    return _kth_best(scores, k)


def _kth_best(scores: Float64s, k: int) -> float:
    return float(np.partition(scores, -k)[-k])


def _open_array(path: Path):  # type: ignore[no-untyped-def]
    # A plain view: indexing numpy.memmap costs several times as much.
    return np.load(path, mmap_mode="r").view(np.ndarray)


def _map_file(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
