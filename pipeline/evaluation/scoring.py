"""Lenient zero-shot scores: whether a prediction is right (step 8, paper section 4.2).

A model without instructions writes more than the answer, so a score searches the prediction for it.
`number` takes the first number or, if the prediction has an equation, the first number after its
`=`. `first_words:N` needs an answer within the first N words. In: a question's scoring and answers,
and the predicted text without calls. Out: a bool. docs/evaluation.md has examples, and
docs/decisions/0025 what the paper leaves open.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Context, Decimal

_SPACES = "\u00a0\u2007\u2009\u202f"  # white space that only stands within a number
_NUMBER = re.compile(
    rf"""(?<![^\W_])(?<!\d[.,])          # not inside a word (B2B) or a number
        (?P<sign>(?<![\d)\]%])-)?       # a minus, unless it stands between two operands (5-3)
        [$¢£¤¥\u20a0-\u20c0]?
        (?:
          (?P<continental>
             \d{{1,3}}(?:\.\d{{3}})+,\d+ | \d{{1,3}}(?:\.\d{{3}}){{2,}}(?!\d)   # 1.234,56; 1.234.567
            |\d{{1,3}}(?:[ {_SPACES}]\d{{3}})+,\d+)                        # 1 234,56
          |(?P<digits>\d{{1,3}}(?:(?:[{_SPACES}]\d{{3}})+|(?:[ ]\d{{3}}){{2,}})(?!\d)  # 1 234 567
            |\d{{1,3}}(?:,\d{{3}})+(?!\d)
            |\d{{1,2}}(?:,\d{{2}})+,\d{{3}}(?!\d)                          # 1,23,456
            |\d{{1,3}}(?:['’]\d{{3}})+(?!\d)                              # 1'234
            |\d+|(?=\.\d))
           (?P<fraction>\.\d+)?
           (?P<exponent>[eE][+-]?\d{{1,3}}(?![^\W_]))?
        )
        (?:(?<=\d)(?P<mixed>[ ]+\d+)?/(?P<denominator>\d+)(?![\d/]|[.,]\d))?
    """,
    re.VERBOSE,
)
_EQUATION = re.compile(r"(?<![<>!=~])==?(?![>=<])")
_VULGAR_FRACTION = re.compile("[¼-¾⅐-⅞↉]")
_SAME_SIGNS = str.maketrans(
    dict.fromkeys("\u2212\u2013\ufe63\uff0d", "-")
    | dict.fromkeys("\u2044\u2215", "/")
    | {"\uff1d": "=", "\u066b": ".", "\u066c": ","}
)
_CALCULATOR_PLACES = -2
_FLOAT_PLACES = -15
_QUOTIENT = Context(prec=50)


class ScoringError(ValueError):
    """An unknown scoring."""


def check_scoring(scoring: str) -> None:
    """Raises ScoringError if `scoring` is unknown."""
    _word_limit(scoring)


def usable_answers(scoring: str, answers: Sequence[str]) -> tuple[str, ...]:
    """The `answers` that a prediction can meet: not too long for the rule, and not only symbols."""
    words = _word_limit(scoring)
    return tuple(answer for answer in answers if _can_be_met(answer, words))


def is_right(scoring: str, prediction: str, answers: Sequence[str]) -> bool:
    """Whether `prediction` (without calls) contains one of `answers`, as `scoring` defines it."""
    words = _word_limit(scoring)
    usable = usable_answers(scoring, answers)
    if words is None:
        predicted = predicted_number(prediction)
        expected = [number for answer in usable if (number := first_number(answer)) is not None]
        return predicted is not None and any(_is_number(predicted, number) for number in expected)
    first_words = normalise(" ".join(prediction.split()[:words]))
    # With a space at both ends, only whole words match.
    spaced = " ".join(["", *first_words, ""])
    return any(f" {' '.join(normalise(answer))} " in spaced for answer in usable)


def predicted_number(prediction: str) -> Decimal | None:
    """The first number or, if the prediction has an equation, the first number after its `=`.

    An equation without a number after its `=` predicts nothing, because the numbers before the `=`
    are those of the question. `<=`, `>=`, `!=` and `=>` make no equation; `==` does.
    """
    equation = _EQUATION.search(prediction.translate(_SAME_SIGNS))
    return first_number(prediction[equation.end() :] if equation else prediction)


def first_number(text: str) -> Decimal | None:
    """The first number in `text`: `-3`, `1,234.50`, `1.234,56`, `$35`, `35.`, `.5`, `1e5`, `3/4`, `1½`."""
    text = _VULGAR_FRACTION.sub(_spelled_out, text).translate(_SAME_SIGNS)
    numbers = _NUMBER.finditer(text)
    return next((value for number in numbers if (value := _value(number)) is not None), None)


def normalise(text: str) -> list[str]:
    """The words of `text` without case and punctuation: `U.S.` is `us`, `1,234` is `1234`.

    Marks belong to their letters (vowel signs, accents); invisible format characters do not count.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)|['’`]", "", text)
    return "".join(map(_word_character, text)).split()


def _word_character(character: str) -> str:
    """The character if it belongs to a word, nothing if it is invisible, else a space."""
    category = unicodedata.category(character)
    invisible = category == "Cf" or unicodedata.name(character, "").startswith("VARIATION SELECTOR")
    if invisible and character != "\u200b":  # a zero-width space separates words
        return ""
    return character if character.isalnum() or category in ("Mn", "Mc") or character == "." else " "


def _word_limit(scoring: str) -> int | None:
    """N of `first_words:N`; None for `number`."""
    if scoring == "number":
        return None
    name, _, words = scoring.partition(":")
    if name == "first_words" and re.fullmatch(r"[0-9]{1,9}", words) and int(words) > 0:
        return int(words)
    shown = scoring if len(scoring) <= 40 else scoring[:40] + "…"
    raise ScoringError(f"unknown scoring {shown!r}: use 'number' or 'first_words:N' with N of at least 1")


def _can_be_met(answer: str, words: int | None) -> bool:
    if "\ufffd" in answer:  # a damaged character, which no model writes
        return False
    if words is None:
        return first_number(answer) is not None
    # A prediction may write the words of an answer together, with a hyphen.
    return 0 < min(len(normalise(answer)), len(answer.split())) <= words


def _spelled_out(character: re.Match[str]) -> str:
    """`½` as `1/2`, apart from a whole number in front."""
    fraction = unicodedata.normalize("NFKC", character.group())
    before = character.string[max(character.start() - 1, 0) : character.start()]
    return f" {fraction}" if before.isdecimal() else fraction


def _value(number: re.Match[str]) -> Decimal | None:
    """The value of a match; None for a fraction over 0."""
    if number["continental"]:
        digits = re.sub(rf"[. {_SPACES}]", "", number["continental"]).replace(",", ".")
    else:
        digits = re.sub(rf"[,'’ {_SPACES}]", "", number["digits"] or "0")
        digits += (number["fraction"] or "") + (number["exponent"] or "")
    value = Decimal(digits)
    if number["denominator"]:
        numerator, denominator = value, Decimal(number["denominator"])
        if not denominator:
            return None
        if number["mixed"]:  # 1 1/2
            part = Decimal(number["mixed"].strip())
            if part >= denominator or value != value.to_integral_value():  # two numbers: 3 24/7
                return -value if number["sign"] else value
            exact = Context(prec=len(number.group()) * 2 + 1_000)  # an exponent has up to 3 digits
            numerator = exact.fma(value, denominator, part)
        value = _QUOTIENT.divide(numerator, denominator)
    return -value if number["sign"] else value


def _is_number(predicted: Decimal, answer: Decimal) -> bool:
    """Whether `predicted` is `answer`, also rounded as the calculator rounds it.

    An answer with 15 decimals or more is a float's, and is compared as one: 2/3 is 0.6666666666666666.
    """
    if predicted in (answer, _rounded(answer)):
        return True
    exponent = answer.as_tuple().exponent
    is_float = isinstance(exponent, int) and exponent <= _FLOAT_PLACES
    return is_float and float(predicted) == float(answer)


def _rounded(number: Decimal) -> Decimal:
    """`number` at the precision of the calculator, whatever its size."""
    _, digits, exponent = number.as_tuple()
    if not isinstance(exponent, int) or exponent >= _CALCULATOR_PLACES:
        return number
    context = Context(prec=len(digits) + abs(exponent) + 1)
    return number.quantize(Decimal("0.01"), ROUND_HALF_UP, context)
