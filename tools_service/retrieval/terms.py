"""From text to the terms that BM25 counts.

Terms are words of two or more letters or digits, in lower case, without Lucene's 33 stop words,
reduced to Snowball stems. The manifest of an index records this as `ANALYSIS`.
"""

from __future__ import annotations

import re

import Stemmer

ANALYSIS = {"word": "two or more letters or digits, 64 at most", "stemmer": "english", "stop_words": "lucene"}
_LUCENE_STOP_WORDS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these "
    "they this to was will with"
)
STOP_WORDS = frozenset(_LUCENE_STOP_WORDS.split())

_WORD = re.compile(r"[^\W_]{2,}")  # single characters (initials, list numbers) cost precision
_MIN_CHARACTERS = 2
_MAX_CHARACTERS = 64  # a longer run of letters is data, not a word: only its beginning counts
_NO_TERM = -1
_ASCII_TO_SPACES = {code: " " for code in range(128) if not chr(code).isalnum()}


def analyze(text: str) -> list[str]:
    """Return the terms of a query, in order."""
    stemmer = Stemmer.Stemmer("english")  # has state: threads must not share one
    words = [word[:_MAX_CHARACTERS] for word in _WORD.findall(text.lower()) if word not in STOP_WORDS]
    return list(stemmer.stemWords(words))


class TermIds(dict[str, int]):
    """Ids for the terms of many texts, by word; `terms` has the ids by (stemmed) term."""

    def __init__(self) -> None:
        super().__init__()
        self.terms: dict[str, int] = {}
        self._stemmer = Stemmer.Stemmer("english")

    def __missing__(self, word: str) -> int:
        if len(word) < _MIN_CHARACTERS or word in STOP_WORDS:
            term_id = _NO_TERM
        else:
            term = self._stemmer.stemWord(word[:_MAX_CHARACTERS])
            term_id = self.terms.setdefault(term, len(self.terms))
        self[word] = term_id
        return term_id

    def analyze(self, text: str) -> list[int]:
        """Return the ids of the terms of `text`, in order."""
        text = text.lower()
        # The same words; splitting is several times as fast as the expression.
        words = text.translate(_ASCII_TO_SPACES).split() if text.isascii() else _WORD.findall(text)
        return [term_id for term_id in map(self.__getitem__, words) if term_id != _NO_TERM]
