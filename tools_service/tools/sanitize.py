"""Results are untrusted text: `clean` makes one safe to stand inside ``[Tool(input) -> result]``.

Brackets become parentheses and ``->`` becomes ``=>``, so that a result can neither close its call nor open
another, also where a tokenizer folds compatibility characters (full-width brackets, say) back to ASCII.
Control and format characters, lone surrogates and line breaks go or become one space. What is too long is cut
at the last word that fits.
"""

from __future__ import annotations

import re
from collections.abc import Callable

CountTokens = Callable[[str], int]

# Every character that is, or that NFKC turns into, one of the markers' characters.
_OPENING, _CLOSING = "[\uff3b\ufe47", "]\uff3d\ufe48"
_BRACKETS = str.maketrans(dict.fromkeys(_OPENING, "(") | dict.fromkeys(_CLOSING, ")"))
# Joiners and combining marks stay, scripts need them, but must not hide a marker from us that a tokenizer
# would reveal by dropping them.
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

# No tokenizer makes fewer tokens than this of a text on average, so longer texts need not be counted.
_CHARACTERS_PER_TOKEN = 32


def count_words(text: str) -> int:
    """The measure of length where no tokenizer is at hand."""
    return len(text.split())


def clean(text: str, max_tokens: int, count_tokens: CountTokens = count_words) -> str:
    """`text` made safe, at most `max_tokens` long as `count_tokens` counts; empty if nothing is left."""
    text = text[: 2 * _CHARACTERS_PER_TOKEN * max_tokens]
    text = _INVISIBLE.sub("", text)
    text = _SPACE.sub(" ", text).strip()
    text = _ARROW.sub("=>", text.translate(_BRACKETS))
    return _cut(text, max_tokens, count_tokens)


def _cut(text: str, max_tokens: int, count_tokens: CountTokens) -> str:
    limit = _CHARACTERS_PER_TOKEN * max_tokens
    if len(text) > limit:
        text = text[:limit].rpartition(" ")[0] or text[:limit]
    if count_tokens(text) <= max_tokens:
        return text
    words = text.split(" ")
    kept = _longest(len(words) - 1, lambda n: count_tokens(" ".join(words[:n])) <= max_tokens)
    if kept:
        return " ".join(words[:kept])
    # One word longer than the cap, or a script that does not space its words.
    return text[: _longest(len(text), lambda n: count_tokens(text[:n]) <= max_tokens)].strip()


def _longest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest n up to `most` that fits, 0 if none does; fitting is taken to be monotone."""
    low = 0
    while low < most:
        middle = (low + most + 1) // 2
        low, most = (middle, most) if fits(middle) else (low, middle - 1)
    return low
