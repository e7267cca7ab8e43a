"""Splits a document into passages that fit the model: the texts x of the paper.

In: a document, a function that counts the tokens of a string, and the limit. Out: `TextPassage`s in order:
contiguous slices without white space at their ends, together every other character of the document. A
passage takes as many paragraphs (lines, as in CCNet and C4) as fit; if not even one fits, it ends after a
sentence, else after a word. A single word above the limit is a passage with a problem. No files, no models.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

# A slice with more characters per token than this is too long without counting its tokens.
# A 5 MB line then costs no more per passage than a short line. Natural text has far fewer.
_MAX_CHARACTERS_PER_TOKEN = 32

_VISIBLE = re.compile(r"\S")
_WORD = re.compile(r"\S+")
# End of a sentence: stop marks, closing quotes, white space (none in Chinese and Japanese).
_SENTENCE_END = re.compile(r"""(?<![.!?…])[.!?…]++["'”’»)\]]*+(?=\s)|[。！？]++[”’」』）]*+""")
_PARAGRAPH_END = re.compile("$", re.MULTILINE)  # at each line break and at the end of the document


@dataclass(frozen=True, slots=True)
class TextPassage:
    """A slice of a document from character `start`. With a `problem`, it is unusable."""

    start: int
    text: str
    problem: str | None = None


def split_passages(document: str, count: Callable[[str], int], max_tokens: int) -> Iterator[TextPassage]:
    """The passages of one document, a deterministic function of the arguments."""
    boundaries = _Boundaries(document, count, max_tokens)
    start = 0
    while visible := _VISIBLE.search(document, start):
        start = visible.start()
        end = boundaries.after(start)
        if end is None:
            word = _WORD.match(document, start)
            end = word.end() if word else len(document)
            problem = f"long word: {end - start:,} characters without a space"
            yield TextPassage(start, document[start:end], problem)
        else:
            yield TextPassage(start, document[start:end].rstrip())
        start = end


class _Boundaries:
    """The positions at which a document may be split, and the furthest one within the limit."""

    def __init__(self, document: str, count: Callable[[str], int], max_tokens: int) -> None:
        self._document = document
        self._count = count
        self._limit = max_tokens
        self._characters_per_token = 4.0  # first estimate; each count updates it
        self._ends = cache(lambda pattern: [match.end() for match in pattern.finditer(document)])

    def after(self, start: int) -> int | None:
        """The best end of a passage that starts at `start`; None if not even a word fits."""
        levels = (_PARAGRAPH_END, _SENTENCE_END, _WORD)
        ends = (self._furthest(self._ends(pattern), start) for pattern in levels)
        return next((end for end in ends if end is not None), None)

    def _furthest(self, ends: list[int], start: int) -> int | None:
        """The last end up to which the slice fits: growing steps from an estimate, then bisection."""
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
