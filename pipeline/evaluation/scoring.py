"""Lenient zero-shot scores: whether a prediction is right (step 8, paper section 4.2).

A model without instructions writes more than the answer, so a score searches the prediction for it.
`number` takes the first number or, if the prediction has an equation, the first number after its
`=`. `first_words:N` needs an answer within the first N words. In: a question's scoring and answers,
and the predicted text without calls. Out: a bool. docs/evaluation.md has examples.
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
    """An unknown scoring, or an answer that does not fit it."""


def check_scoring(scoring: str, answers: Sequence[str]) -> None:
    """Raises ScoringError if `scoring` is unknown, or if nothing could match one of `answers`."""
    words = _word_limit(scoring)
    for answer in answers:
        if words is None and first_number(answer) is None:
            raise ScoringError(f"answer {answer!r} holds no number, which scoring 'number' needs")
        if words is not None and not 0 < len(normalise(answer)) <= words:
            raise ScoringError(f"answer {answer!r} cannot appear within {words} words")


def is_right(scoring: str, prediction: str, answers: Sequence[str]) -> bool:
    """Whether `prediction` (without calls) contains one of `answers`, as `scoring` defines it."""
    words = _word_limit(scoring)
    if words is None:
        predicted = predicted_number(prediction)
        expected = [number for answer in answers if (number := first_number(answer)) is not None]
        # The calculator rounds to two decimals, so a rounded answer counts as well.
        return predicted is not None and any(
            predicted in (number, number.quantize(_CALCULATOR_PRECISION, ROUND_HALF_UP))
            for number in expected
        )
    first_words = normalise(" ".join(prediction.split()[:words]))
    # With a space at both ends, only whole words match.
    spaced = " ".join(["", *first_words, ""])
    return any(f" {' '.join(normalise(answer))} " in spaced for answer in answers)


def predicted_number(prediction: str) -> Decimal | None:
    """The first number or, if its sentence has an equation, the first number after the `=`.

    Later sentences are ignored, so that a later remark does not replace the answer. An equation
    without a number after its `=` predicts nothing, because the numbers before the `=` are those of
    the question.
    """
    prediction = prediction.translate(_MINUS_SIGNS)
    number = _NUMBER.search(prediction)
    if number is None:
        return None
    earlier_ends = _SENTENCE_END.finditer(prediction, 0, number.start())
    start = max((end.end() for end in earlier_ends), default=0)
    next_end = _SENTENCE_END.search(prediction, number.end())
    sentence = prediction[start : next_end.start() if next_end else None]
    _, equals, after = sentence.partition("=")
    return first_number(after) if equals else _value(number)


def first_number(text: str) -> Decimal | None:
    """The first number in `text`, in any of the forms `-3`, `1,234.50`, `$35`, `35.`, `.5`."""
    number = _NUMBER.search(text.translate(_MINUS_SIGNS))
    return None if number is None else _value(number)


def normalise(text: str) -> list[str]:
    """The words of `text` without case and punctuation: `U.S.` is `us`, `1,234` is `1234`."""
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


def _value(number: re.Match[str]) -> Decimal:
    digits = (number["digits"] or "0").replace(",", "")
    return Decimal(f"{number['sign'] or ''}{digits}{number['fraction'] or ''}")
