"""A document becomes passages that fit the model: the texts x of the paper.

In: the document, a function that counts a string's tokens, the limit. Out: `Passage`s in order, each a
contiguous slice of the document without white space at its ends and otherwise untouched; together they
hold every character that is not white space. A passage takes as many paragraphs (lines, as CCNet and C4
have them) as fit. Where not even one fits it ends after a sentence, else after a word, never within one:
a single word beyond the limit is a passage with a problem. Pure; knows nothing of files or models.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

# Past this many characters per token a slice is taken as too long without counting, so that a 5 MB line
# costs no more per passage than a short one. No natural text comes near.
_MAX_CHARACTERS_PER_TOKEN = 32

_VISIBLE = re.compile(r"\S")
_WORD = re.compile(r"\S+")
# The end of a sentence: stop marks, closing quotes, white space (none in Chinese and Japanese).
_SENTENCE_END = re.compile(r"""(?<![.!?…])[.!?…]++["'”’»)\]]*+(?=\s)|[。！？]++[”’」』）]*+""")


@dataclass(frozen=True, slots=True)
class Passage:
    """A slice of a document; with a `problem` (``KIND: details``) it cannot be used."""

    start: int
    text: str
    problem: str | None = None


def split_passages(document: str, count: Callable[[str], int], max_tokens: int) -> Iterator[Passage]:
    """The passages of one document. The same document, counts and limit always give the same passages."""
    cuts = _Cuts(document, count, max_tokens)
    start = 0
    while visible := _VISIBLE.search(document, start):
        start = visible.start()
        end = cuts.after(start)
        if end is None:
            end = _word_end(document, start)
            yield Passage(
                start, document[start:end], f"long word: {end - start:,} characters without a space"
            )
        else:
            yield Passage(start, document[start:end].rstrip())
        start = end


def _word_end(document: str, start: int) -> int:
    word = _WORD.match(document, start)
    return word.end() if word else len(document)


class _Cuts:
    """Where a document may be cut, and how far from a given start a cut can be."""

    def __init__(self, document: str, count: Callable[[str], int], max_tokens: int) -> None:
        self._document = document
        self._count = count
        self._limit = max_tokens
        self._characters_per_token = 4.0  # a first guess; each count corrects it

    @cached_property
    def _paragraph_ends(self) -> list[int]:
        return [at for at, character in enumerate(self._document) if character == "\n"] + [
            len(self._document)
        ]

    @cached_property
    def _sentence_ends(self) -> list[int]:
        return [match.end() for match in _SENTENCE_END.finditer(self._document)]

    @cached_property
    def _word_ends(self) -> list[int]:
        return [match.end() for match in _WORD.finditer(self._document)]

    def after(self, start: int) -> int | None:
        """The furthest good place to end a passage that begins at `start`; None if not even a word fits."""
        for level in ("_paragraph_ends", "_sentence_ends", "_word_ends"):
            end = self._furthest(getattr(self, level), start)
            if end is not None:
                return end
        return None

    def _furthest(self, ends: list[int], start: int) -> int | None:
        """The last of the ends up to which the slice fits, found by guessing, then halving."""
        first = bisect_right(ends, start)
        fits, too_far = first - 1, len(ends)
        guess = bisect_right(ends, start + self._limit * self._characters_per_token) - 1
        step = 1
        while too_far - fits > 1:
            if not fits < guess < too_far:
                guess = (fits + too_far) // 2
            if self._fits(start, ends[guess]):
                fits, guess = guess, guess + step
            else:
                too_far, guess = guess, guess - step
            step *= 2
        return ends[fits] if fits >= first else None

    def _fits(self, start: int, end: int) -> bool:
        if end - start > self._limit * _MAX_CHARACTERS_PER_TOKEN:
            return False
        tokens = self._count(self._document[start:end].rstrip())
        self._characters_per_token = (end - start) / max(tokens, 1)
        return tokens <= self._limit
