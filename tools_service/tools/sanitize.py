"""Results are untrusted text: `clean` makes a result safe inside ``[Tool(input) -> result]``.

In: a text. Out: the text with parentheses for brackets and ``=>`` for ``->``, so that it can
neither close its call nor open another, also if a tokenizer folds compatibility characters
(full-width brackets, say) to ASCII. Control and format characters, lone surrogates and line breaks
go or become one space. A long result is cut at the last word that fits.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable

CountTokens = Callable[[str], int]

# Every character that is a bracket of a call, or that NFKC turns into one.
_OPENING, _CLOSING = "[\uff3b\ufe47", "]\uff3d\ufe48"
_BRACKETS = str.maketrans(dict.fromkeys(_OPENING, "(") | dict.fromkeys(_CLOSING, ")"))
# Joiners and combining marks stay, because scripts need them. But a tokenizer may drop them, so
# they must not hide an arrow.
_MARKS = (
    "[\u0300-\u036f\u180b-\u180f\u200c\u200d\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f\U000e0100-\U000e01ef]"
)
_ARROW = re.compile(f"[-\uff0d\ufe63]{_MARKS}*[>\uff1e\ufe65\u226f]")
_SPACE = re.compile(r"[\s\u0000-\u001f\u007f-\u009f\u200b\u2060\ufeff]+")
# Soft hyphens, direction and annotation marks, halves of surrogate pairs, tags.
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200e\u200f\u202a-\u202e\u2061-\u206f\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)

# No tokenizer has longer tokens on average, so longer texts need not be counted.
MAX_CHARACTERS_PER_TOKEN = 32


def count_words(text: str) -> int:
    """Return the length of a text where there is no tokenizer."""
    return len(text.split())


def clean(text: str, max_tokens: int, count_tokens: CountTokens = count_words) -> str:
    """Return `text` made safe, at most `max_tokens` long by `count_tokens`; it may be empty."""
    text = text[: 2 * MAX_CHARACTERS_PER_TOKEN * max_tokens]
    text = _INVISIBLE.sub("", text)
    text = _SPACE.sub(" ", text).strip()
    text = _ARROW.sub("=>", text.translate(_BRACKETS))
    return _cut(text, max_tokens, count_tokens)


def _cut(text: str, max_tokens: int, count_tokens: CountTokens) -> str:
    limit = MAX_CHARACTERS_PER_TOKEN * max_tokens
    if len(text) > limit:
        text = text[:limit].rpartition(" ")[0] or text[:limit]
    if count_tokens(text) <= max_tokens:
        return text
    words = text.split(" ")
    kept = _longest(len(words) - 1, lambda n: count_tokens(" ".join(words[:n])) <= max_tokens)
    if kept:
        return " ".join(words[:kept])
    # A word longer than the limit, or a script without spaces.
    return text[: _longest(len(text), lambda n: count_tokens(text[:n]) <= max_tokens)].strip()


def _longest(high: int, fits: Callable[[int], bool]) -> int:
    """Return the largest n up to `high` that fits, 0 if none does. `fits` must be monotone."""
    return bisect_left(range(1, high + 1), True, key=lambda n: not fits(n))
