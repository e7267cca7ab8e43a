"""Passages of about 100 words: how articles are cut into them, and the file that holds them.

`split` cuts at sentence ends. A store is a folder's `passages.bin` (title, line break, text, one after the
other) and `passages.npy` (where each begins, and the end): written once, opened by memory map, so that the
processes of a node share its pages.
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
    """One passage found: its number and its score; better is higher, whatever the retriever."""

    passage: int
    score: float


def split(text: str, words: int = PASSAGE_WORDS) -> Iterator[str]:
    """`text` in pieces of about `words` words: each ends at the first sentence end past that, or at 1.5 times
    as many.

    Joined with spaces the pieces are the text's words again; a last piece of fewer than a quarter of `words`
    joins the one before it.
    """
    every = text.split()
    start = 0
    while len(every) - start > words + words // 4:
        longest = min(start + words + words // 2, len(every))
        ends = (n for n in range(start + words, longest) if _SENTENCE_END.search(every[n - 1]))
        end = next(ends, longest)
        if len(every) - end < words // 4:
            break
        yield " ".join(every[start:end])
        start = end
    if start < len(every):
        yield " ".join(every[start:])


def stored(passage: Passage) -> bytes:
    """A passage as it stands in `passages.bin`; neither part holds a line break."""
    return f"{passage.title}\n{passage.text}".encode("utf-8", "replace")


class PassageStore:
    """The passages of an index, by number."""

    def __init__(self, folder: Path) -> None:
        self._starts = np.load(folder / "passages.npy", mmap_mode="r")  # int64 [passages + 1]
        self._bytes = np.memmap(folder / "passages.bin", dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> Passage:
        """IndexError where there is no such passage."""
        if not 0 <= number < len(self):
            raise IndexError(f"passage {number} of {len(self)}")
        start, end = self._starts[number : number + 2]
        title, _, text = bytes(self._bytes[start:end]).decode("utf-8").partition("\n")
        return Passage(title, text)
