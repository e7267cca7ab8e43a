"""Splits a document into passages that fit the model: the texts x of the paper.

In: a document, a function that counts the tokens of a string, and the limit. Out: `TextPassage`s in order:
contiguous slices without white space at their ends, together every other character of the document. A
passage takes as many paragraphs (lines, as in CCNet and C4) as fit; if not even one fits, it ends after a
sentence, else after a word. A single word above the limit is a passage with a problem. No files, no models.

If the tokenizer also gives the starts of tokens, a document is tokenized about once, and its slices are
counted without tokenizing them again (docs/decisions/0052). The passages are the same.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

# A slice with more characters per token than this is too long without counting its tokens.
# A 5 MB line then costs no more per passage than a short line. Natural text has far fewer.
_MAX_CHARACTERS_PER_TOKEN = 32

# Tokenized at once at most, so that memory does not grow with the document.
_WINDOW_CHARACTERS = 32 * 2**10
_MAX_FIRST_WORD = 64  # characters
_WORDS_REMEMBERED = 4_096

_VISIBLE = re.compile(r"\S")
_WORD = re.compile(r"\S+")
# End of a sentence: stop marks, closing quotes, white space (none in Chinese and Japanese).
_SENTENCE_END = re.compile(r"""(?<![.!?…])[.!?…]++["'”’»)\]]*+(?=\s)|[。！？]++[”’」』）]*+""")
_PARAGRAPH_END = re.compile("$", re.MULTILINE)  # at each line break and at the end of the document

TokenStarts = Callable[[str], np.ndarray]
"""From a text to the character at which each token of ``" " + text`` starts: int64 [tokens].

A token starts where the previous one ends. The start is -1 within a character. The number of tokens
is that of the function that counts them.
"""


@dataclass(frozen=True, slots=True)
class TextPassage:
    """A slice of a document from character `start`. With a `problem`, it is unusable."""

    start: int
    text: str
    problem: str | None = None


def split_passages(
    document: str, count: Callable[[str], int], max_tokens: int, starts: TokenStarts | None = None
) -> Iterator[TextPassage]:
    """The passages of one document, a deterministic function of the arguments.

    `starts` makes it fast and changes no passage.
    """
    boundaries = _Boundaries(document, _SliceCount(document, count, max_tokens, starts), max_tokens)
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

    def __init__(self, document: str, count: _SliceCount, max_tokens: int) -> None:
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
        tokens = self._count.tokens(start, end)
        self._characters_per_token = (end - start) / max(tokens, 1)
        return tokens <= self._limit


class _SliceCount:
    """The tokens of slices of a document.

    A window of the document is tokenized at once. A slice whose ends lie between tokens of the window
    has the tokens that it has there, because tokenizers do not look beyond a token's end that stands.
    Only the first word differs, if it does not follow a single space. All other slices are tokenized.
    """

    def __init__(
        self, document: str, count: Callable[[str], int], max_tokens: int, starts: TokenStarts | None
    ) -> None:
        self._document = document
        self._count = count
        self._starts = starts
        self._window_size = max(_WINDOW_CHARACTERS, max_tokens * _MAX_CHARACTERS_PER_TOKEN)
        self._window = range(0)  # characters of the document
        self._token_starts = np.zeros(0, dtype=np.int64)  # [tokens of the window], in the document
        self._first: tuple[int, int, int] | None = None
        self._first_of = -1

    def tokens(self, start: int, end: int) -> int:
        """The tokens of ``document[start:end].rstrip()``; `start` is at a visible character."""
        text = self._document[start:end].rstrip()
        if self._starts is None:
            return self._count(text)
        end = start + len(text)
        if not self._window.start <= start < end <= self._window.stop:
            self._move(start, self._starts)
        if start != self._first_of:
            self._first, self._first_of = self._first_word(start), start
        last = self._tokens_before(end)
        if self._first is None or last is None:
            return self._count(text)
        word_end, tokens, before = self._first
        return tokens + last - before if end >= word_end else self._count(text)

    def _move(self, start: int, starts: TokenStarts) -> None:
        """Tokenize the window that begins at `start`."""
        window = self._document[start : start + self._window_size]
        self._window = range(start, start + len(window))
        # Within a character no token of a slice can start: -1 becomes the start of that character.
        self._token_starts = np.maximum.accumulate(starts(window)) + (start - 1)
        self._first_of = -1

    def _first_word(self, start: int) -> tuple[int, int, int] | None:
        """Where the tokens of a slice from `start` are those of the window from then on: the character,
        the tokens of the slice before it, those of the window; None if nowhere near."""
        if start == self._window.start:
            return start, 0, 0
        space = self._document[start - 2 : start]
        if space[-1:] == " " and not space[:1].isspace() and start - 2 >= self._window.start:
            before = self._tokens_before(start - 1)
            if before is not None:
                return start, 0, before
        word = _WORD.match(self._document, start, start + _MAX_FIRST_WORD)
        end = word.end() if word else start
        before = self._tokens_before(end) if end < start + _MAX_FIRST_WORD else None
        return None if before is None else (end, _word_tokens(self._count, self._document[start:end]), before)

    def _tokens_before(self, at: int) -> int | None:
        """The tokens of the window before the character `at`; None if that is within a token."""
        if at == self._window.stop:
            return len(self._token_starts)
        number = int(self._token_starts.searchsorted(at))
        known = number < len(self._token_starts) and self._token_starts[number] == at
        return number if known else None


@lru_cache(maxsize=_WORDS_REMEMBERED)
def _word_tokens(count: Callable[[str], int], word: str) -> int:
    return count(word)
