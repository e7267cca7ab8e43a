"""Step 8: when a prediction counts as right (paper section 4.2: lenient, zero-shot scores).

A language model that was not told how to answer says more than the answer, so a score looks for the answer in
what it said: `number` takes the first number predicted or, if the prediction contains an equation, the first
number after its `=`; `first_words:N` wants an answer among the first N words. In: a question's scoring name
and answers, and the predicted text without its calls. Out: yes or no. docs/evaluation.md has examples.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal

_NUMBER = re.compile(
    r"""(?<![^\W_])(?<!\d[.,])          # not inside a word (B2B) or a number
        (?P<sign>(?<![\d)\]%])-)?       # a minus, unless it stands between two operands (5-3)
        [$€£¥]?
        (?P<digits>\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))
        (?P<fraction>\.\d+)?""",
    re.VERBOSE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_MINUS_SIGNS = str.maketrans({"\u2212": "-", "\u2013": "-", "\ufe63": "-", "\uff0d": "-"})
_CALCULATOR_PRECISION = Decimal("0.01")


class ScoringError(ValueError):
    """A scoring name that does not exist, or an answer it cannot be used with."""


def check_scoring(scoring: str, answers: Sequence[str]) -> None:
    """Raise ScoringError if `scoring` is unknown or one of `answers` can never be predicted under it."""
    words = _word_limit(scoring)
    for answer in answers:
        if words is None and first_number(answer) is None:
            raise ScoringError(f"answer {answer!r} holds no number, which scoring 'number' needs")
        if words is not None and not 0 < len(normalise(answer)) <= words:
            raise ScoringError(f"answer {answer!r} cannot appear within {words} words")


def is_right(scoring: str, prediction: str, answers: Sequence[str]) -> bool:
    """Whether `prediction` (without calls) answers the question under the named scoring."""
    words = _word_limit(scoring)
    if words is None:
        predicted = predicted_number(prediction)
        return predicted is not None and any(_same_number(predicted, answer) for answer in answers)
    start = normalise(" ".join(prediction.split()[:words]))
    return any(_contains(start, normalise(answer)) for answer in answers)


def predicted_number(prediction: str) -> Decimal | None:
    """The number predicted: the first one or, if its sentence holds an equation, the first one after the `=`.

    Only the sentence of the first number is looked at, so that a later aside does not replace the answer. An
    equation without a number after its `=` predicts nothing: the numbers before it are the question's.
    """
    prediction = prediction.translate(_MINUS_SIGNS)
    found = _NUMBER.search(prediction)
    if found is None:
        return None
    previous = [end.end() for end in _SENTENCE_END.finditer(prediction, 0, found.start())]
    tail = _SENTENCE_END.search(prediction, found.end())
    sentence = prediction[previous[-1] if previous else 0 : tail.start() if tail else None]
    _, equals, after = sentence.partition("=")
    return first_number(after) if equals else _value(found)


def first_number(text: str) -> Decimal | None:
    """The first number written in `text`: `-3`, `1,234.50`, `$35`, `35.`, `.5` as people mean them."""
    found = _NUMBER.search(text.translate(_MINUS_SIGNS))
    return None if found is None else _value(found)


def normalise(text: str) -> list[str]:
    """The words of `text` without case and punctuation; `U.S.` is `us`, `3.5` and `1,234` stay numbers."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)|['’`]", "", text)
    return "".join(c if c.isalnum() or unicodedata.combining(c) or c == "." else " " for c in text).split()


def _word_limit(scoring: str) -> int | None:
    """N of `first_words:N`; None for `number`."""
    if scoring == "number":
        return None
    name, _, words = scoring.partition(":")
    if name == "first_words" and words.isascii() and words.isdigit() and int(words) > 0:
        return int(words)
    raise ScoringError(f"unknown scoring {scoring!r}: use 'number' or 'first_words:N' with N of at least 1")


def _value(found: re.Match[str]) -> Decimal:
    digits = (found["digits"] or "0").replace(",", "")
    return Decimal(f"{found['sign'] or ''}{digits}{found['fraction'] or ''}")


def _same_number(predicted: Decimal, answer: str) -> bool:
    """Equal, or equal once the answer is rounded to the calculator's two decimals."""
    wanted = first_number(answer)
    if wanted is None:
        return False
    return predicted in (wanted, wanted.quantize(_CALCULATOR_PRECISION, ROUND_HALF_UP))


def _contains(words: Sequence[str], answer: Sequence[str]) -> bool:
    """Whether `answer` is a run of whole words of `words`."""
    return bool(answer) and any(
        words[start : start + len(answer)] == answer for start in range(len(words) - len(answer) + 1)
    )
