"""From text to the terms that BM25 counts.

Words of two or more letters or digits, in lower case, without Lucene's 33 stop words, as Snowball stems. An
index says in its manifest what it was built with: `ANALYSIS`.
"""

from __future__ import annotations

import re

import Stemmer

ANALYSIS = {
    "word": "two or more letters or digits, 64 at most",
    "stemmer": "english",
    "stop_words": "lucene",
}
_LUCENES = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these "
    "they this to was will with"
)
STOP_WORDS = frozenset(_LUCENES.split())

_WORD = re.compile(r"[^\W_]{2,}")  # single characters (initials, list numbers) cost precision
_MAX_CHARACTERS = 64  # a longer run of letters is data, not a word: its beginning counts
_NONE = -1


def analyze(text: str) -> list[str]:
    """The terms of a query, in order."""
    stemmer = Stemmer.Stemmer("english")  # keeps state while it works: threads must not share one
    words = [word[:_MAX_CHARACTERS] for word in _WORD.findall(text.lower()) if word not in STOP_WORDS]
    return list(stemmer.stemWords(words))


class TermNumbers(dict[str, int]):
    """The terms of many texts as numbers, in order of appearance.

    Maps words to numbers, so that a word is stemmed once however often it comes; `terms` maps terms.
    """

    def __init__(self) -> None:
        super().__init__()
        self.terms: dict[str, int] = {}
        self._stemmer = Stemmer.Stemmer("english")

    def __missing__(self, word: str) -> int:
        if word in STOP_WORDS:
            number = _NONE
        else:
            number = self.terms.setdefault(self._stemmer.stemWord(word[:_MAX_CHARACTERS]), len(self.terms))
        self[word] = number
        return number

    def of(self, text: str) -> list[int]:
        """The terms of `text` by number, in order."""
        return [number for word in _WORD.findall(text.lower()) if (number := self[word]) != _NONE]
