"""One block of the source's lines becomes one segment of the index: passages and postings, on disk.

A segment stands for itself (its terms and passages are numbered from 0), so segments are made in any order,
in any process, and merging.py puts them together. The work, and the memory it takes, is bounded by the block.

    passages.bin, passages.npy   the passages (passages.PassageStore)
    lengths.npy                  int32 [passages]: terms of each
    terms.txt                    the terms, sorted by their bytes, one a line
    frequencies.npy              int32 [terms]: passages that hold each
    postings.npy, counts.npy     int32 [postings]: by term, then passage: the passage, how often it has it
    skipped.jsonl                the lines that gave no article
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tools_service.retrieval.passages import Passage, split, stored
from tools_service.retrieval.sources import Block, Skipped, read_articles
from tools_service.retrieval.terms import TermNumbers

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Segment:
    """What a segment holds. `lines` are articles and `skipped`."""

    folder: Path
    lines: int
    articles: int
    passages: int
    skipped: Counter[str]


def write_segment(block: Block, folder: Path) -> Segment:
    """Index one block into `folder`, which is made; a second time gives the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = TermNumbers()
    terms, lengths, starts = array("i"), array("i"), array("q", [0])
    skipped: Counter[str] = Counter()
    articles = 0
    with (
        (folder / "passages.bin").open("wb") as texts,
        (folder / "skipped.jsonl").open("w", encoding="utf-8") as log,
    ):
        for item in read_articles(block):
            if isinstance(item, Skipped):
                skipped[item.kind] += 1
                log.write(json.dumps(asdict(item)) + "\n")
                continue
            articles += 1
            for text in [" ".join(item.text.split())] if item.passage else split(item.text):
                found = numbers.of(f"{item.title} {text}")
                terms.extend(found)
                lengths.append(len(found))
                starts.append(starts[-1] + texts.write(stored(Passage(item.title, text))))
    np.save(folder / "passages.npy", np.frombuffer(starts, dtype=np.int64))
    np.save(folder / "lengths.npy", np.frombuffer(lengths, dtype=np.int32))
    _write_postings(list(numbers.terms), terms, lengths, folder)
    return Segment(folder, articles + skipped.total(), articles, len(lengths), skipped)


def _write_postings(terms: list[str], numbers: array[int], lengths: array[int], folder: Path) -> None:
    """`terms` in order of appearance; `numbers`: the terms of all passages, whose numbers are `lengths`."""
    order = sorted(range(len(terms)), key=terms.__getitem__)  # code points sort as UTF-8 bytes do
    with (folder / "terms.txt").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{terms[n]}\n" for n in order)
    rank = np.empty(len(terms), dtype=np.int64)
    rank[order] = np.arange(len(terms))
    passages = np.repeat(np.arange(len(lengths), dtype=np.int64), np.frombuffer(lengths, dtype=np.int32))
    keys = rank[np.frombuffer(numbers, dtype=np.int32)] * max(1, len(lengths)) + passages
    keys.sort()
    first = np.flatnonzero(np.diff(keys, prepend=-1))  # of each (term, passage)
    term, passage = np.divmod(keys[first], max(1, len(lengths)))
    np.save(folder / "frequencies.npy", np.bincount(term, minlength=len(terms)).astype(np.int32))
    np.save(folder / "postings.npy", passage.astype(np.int32))
    np.save(folder / "counts.npy", np.diff(first, append=len(keys)).astype(np.int32))
