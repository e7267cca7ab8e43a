"""A block of the source's lines becomes a segment of the index: passages and postings, on disk.

A segment numbers its terms and passages from 0, so that segments are made in any order and process,
and merging.py joins them. Work and memory are bounded by the block. The files of a segment:

    passages.bin, passages.npy   the passages (retrieval/passages.py)
    lengths.npy                  int32 [passages]: number of terms of each
    terms.txt                    the terms, sorted by their bytes, one per line
    frequencies.npy              int32 [terms]: number of passages that hold each
    postings.npy                 int32 [postings], by term, then passage: the passages
    counts.npy                   the smallest unsigned integers [postings]: the term frequencies
    skipped.jsonl                the lines that gave no article
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tools_service.indexing.sources import Block, Skipped, read_articles
from tools_service.retrieval.passages import Passage, encode_passage, split_text
from tools_service.retrieval.terms import TermIds


@dataclass(frozen=True)
class Segment:
    """Where a segment is and what it holds. `lines` counts articles and skipped lines."""

    folder: Path
    lines: int
    articles: int
    passages: int
    skipped: Counter[str]


def write_segment(block: Block, folder: Path) -> Segment:
    """Index a block into `folder`, which is created. A second time gives the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    term_ids = TermIds()
    terms, lengths, starts = array("i"), array("i"), array("q", [0])  # over all passages of the block
    skipped: Counter[str] = Counter()
    articles = 0
    with (
        (folder / "passages.bin").open("wb") as passages_file,
        (folder / "skipped.jsonl").open("w", encoding="utf-8") as skipped_file,
    ):
        for item in read_articles(block):
            if isinstance(item, Skipped):
                skipped[item.kind] += 1
                skipped_file.write(json.dumps(asdict(item)) + "\n")
                continue
            articles += 1
            for text in [" ".join(item.text.split())] if item.is_passage else split_text(item.text):
                passage_terms = term_ids.analyze(f"{item.title} {text}")
                terms.extend(passage_terms)
                lengths.append(len(passage_terms))
                size = passages_file.write(encode_passage(Passage(item.title, text)))
                starts.append(starts[-1] + size)
    np.save(folder / "passages.npy", np.frombuffer(starts, dtype=np.int64))
    np.save(folder / "lengths.npy", np.frombuffer(lengths, dtype=np.int32))
    _write_postings(list(term_ids.terms), terms, lengths, folder)
    return Segment(folder, articles + skipped.total(), articles, len(lengths), skipped)


def _write_postings(vocabulary: list[str], terms: array[int], lengths: array[int], folder: Path) -> None:
    """`terms` are ids in `vocabulary`, passage after passage; `lengths` are the passages'."""
    order = sorted(range(len(vocabulary)), key=vocabulary.__getitem__)  # code points sort as UTF-8 does
    with (folder / "terms.txt").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{vocabulary[n]}\n" for n in order)
    rank = np.empty(len(vocabulary), dtype=np.int64)
    rank[order] = np.arange(len(vocabulary))

    # One integer for each occurrence of a term, which sorts by term and then by passage.
    passage_count = max(1, len(lengths))
    passages = np.repeat(np.arange(len(lengths), dtype=np.int64), np.frombuffer(lengths, dtype=np.int32))
    keys = rank[np.frombuffer(terms, dtype=np.int32)] * passage_count + passages
    keys.sort()
    first = np.flatnonzero(np.diff(keys, prepend=-1))  # the first occurrence of each (term, passage)
    posting_terms, posting_passages = np.divmod(keys[first], passage_count)
    frequencies = np.bincount(posting_terms, minlength=len(vocabulary))
    np.save(folder / "frequencies.npy", frequencies.astype(np.int32))
    np.save(folder / "postings.npy", posting_passages.astype(np.int32))
    counts = np.diff(first, append=len(keys))
    np.save(folder / "counts.npy", counts.astype(np.min_scalar_type(counts.max(initial=0))))
