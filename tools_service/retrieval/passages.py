"""Passages of about 100 words: how articles are split into them, and the file that holds them.

`split_text` ends passages at sentence ends. A store is two files of a folder, written once and
opened by memory map, so that the processes of a node share its pages:

    passages.bin   title, line break and text of each passage, one after the other
    passages.npy   int64 [passages + 1]: where each passage begins, and the end of the last
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PASSAGE_WORDS = 100

_SENTENCE_END = re.compile(r"[.!?][\"')\]]*$")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of an article, and the article's title."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved passage, by number, and its score. Higher is better, whatever the retriever."""

    passage: int
    score: float


def split_text(text: str, words: int = PASSAGE_WORDS) -> Iterator[str]:
    """Yield `text` in pieces of about `words` words.

    A piece ends at the first sentence end after `words` words, at the latest after 1.5 times as
    many. A last piece of less than a quarter of `words` joins the piece before it. The pieces,
    joined with spaces, have all words of the text.
    """
    all_words = text.split()
    start = 0
    while len(all_words) - start > words + words // 4:
        latest = min(start + words + words // 2, len(all_words))
        sentence_ends = (n for n in range(start + words, latest) if _SENTENCE_END.search(all_words[n - 1]))
        end = next(sentence_ends, latest)
        if len(all_words) - end < words // 4:
            break
        yield " ".join(all_words[start:end])
        start = end
    if start < len(all_words):
        yield " ".join(all_words[start:])


def encode_passage(passage: Passage) -> bytes:
    """Return a passage as `passages.bin` holds it; neither title nor text may hold a line break."""
    return f"{passage.title}\n{passage.text}".encode("utf-8", "replace")


class PassageStore:
    """The passages of an index, by number."""

    def __init__(self, folder: Path) -> None:
        self._starts = np.load(folder / "passages.npy", mmap_mode="r")  # int64 [passages + 1]
        self._bytes = np.memmap(folder / "passages.bin", dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> Passage:
        """Return a passage; IndexError if there is none of that number."""
        if not 0 <= number < len(self):
            raise IndexError(f"passage {number} of {len(self)}")
        start, end = self._starts[number : number + 2]
        title, _, text = bytes(self._bytes[start:end]).decode("utf-8").partition("\n")
        return Passage(title, text)
