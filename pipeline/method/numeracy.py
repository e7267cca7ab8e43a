"""Signs of arithmetic in a text, by which step 1 selects texts for the calculator (paper
Appendix A).

In: a text. Out: its numbers with their token positions; whether three of them within a
window of tokens are an operation and its result; whether a phrase announces a result.
Values are integers scaled by a power of ten, so that 0.1 + 0.2 is 0.3.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# A run of digits with its separators, a run of letters, or one other character: on English
# web text, 1.1 of GPT-2's tokens each (docs/decisions/0008).
_TOKEN = re.compile(r"[0-9][0-9.,]*|[^\W\d_]+|\S")

# Numbers inside words or dotted sequences (B2B, 192.168.1.1, 3.14.2) and ordinals do not
# count; 5kg and $5 do.
_NUMBER = re.compile(
    r"(?<![\w.])(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
    r"(?![0-9]|\.[0-9]|(?:st|nd|rd|th)\b)"
)

_RESULT = re.compile(
    r"(?:=|\b(?:equals|equal\s+to|total\s+of|average\s+of)\b)\s*[-+]?\s?[$£€]?[0-9]",
    re.IGNORECASE,
)

# One of these is part of every match of _RESULT, in small letters.
_RESULT_WORDS = ("=", "equal", "total", "average")

# Longer runs of digits are identifiers or coordinates rather than quantities.
_MAX_WHOLE_DIGITS = 15
_MAX_DECIMALS = 6
_HUNDRED = 100


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it is written: digits / 10**decimals, at token `position` of the text."""

    position: int
    digits: int
    decimals: int

    @property
    def may_be_rounded(self) -> bool:
        """Whether it may be a rounded quotient: two decimals, and not 0.00."""
        return self.decimals == 2 and self.digits > 0

    def scaled(self, places: int) -> int:
        """The value times 10**places, exact for places >= decimals."""
        factor: int = 10 ** (places - self.decimals)
        return self.digits * factor


def find_numbers(text: str, at_least: int = 1) -> list[Number]:
    """The numbers of a text in order; none if there are fewer than `at_least`.

    Signs are ignored: a - b = c is found as c + b = a.
    """
    written = []
    for match in _NUMBER.finditer(text):
        whole, _, fraction = match[0].replace(",", "").partition(".")
        if len(whole) <= _MAX_WHOLE_DIGITS and len(fraction) <= _MAX_DECIMALS:
            written.append((match.start(), whole, fraction))
    if len(written) < at_least:
        return []
    token_starts = [match.start() for match in _TOKEN.finditer(text)]
    return [
        Number(
            position=bisect_right(token_starts, start) - 1,
            digits=int(whole + fraction),
            decimals=len(fraction),
        )
        for start, whole, fraction in written
    ]


def announces_result(text: str) -> bool:
    """Whether `=`, `equals`, `equal to`, `total of` or `average of` precedes a number."""
    lowered = text.lower()
    if not any(word in lowered for word in _RESULT_WORDS):
        return False  # a search for strings is faster than the pattern's
    return _RESULT.search(text) is not None


def has_computed_number(numbers: Sequence[Number], window: int) -> bool:
    """Whether three numbers within `window` tokens are an operation of + - * / and its result.

    The operands and the result come in any order. A quotient counts if it is exact, or if
    the result is written with two decimals, not 0.00, and is the quotient rounded half up.
    The time grows with the numbers times those in a window.
    """
    places = max((number.decimals for number in numbers), default=0)
    start = 0
    for end, number in enumerate(numbers):
        while numbers[start].position <= number.position - window:
            start += 1
        others = numbers[start:end]
        if len(others) >= 2 and _Triples(others, places).completed_by(number):
            return True
    return False


class _Triples:
    """The numbers before one number in its window, searched for pairs that compute it."""

    def __init__(self, numbers: Sequence[Number], places: int) -> None:
        """Values are scaled by 10**places."""
        self._places = places
        self._scale = 10**places
        self._values = Counter(number.scaled(places) for number in numbers)
        self._rounded = {n.scaled(places) for n in numbers if n.may_be_rounded}

    def completed_by(self, number: Number) -> bool:
        """Whether `number` and two of the numbers are an operation and its result."""
        x = number.scaled(self._places)
        for y in self._values:
            if any(self._has(z, y) for z in self._third_numbers(x, y)):
                return True
        return number.may_be_rounded and self._is_rounded_quotient(x)

    def _third_numbers(self, x: int, y: int) -> Iterator[int]:
        """Numbers that form a triple with x and y: sum, difference, product, quotients.

        Quotients are exact, or rounded to the two decimals of a number in the window.
        """
        yield x + y
        yield abs(x - y)
        product, rest = divmod(x * y, self._scale)
        if rest == 0:
            yield product
        for dividend, divisor in ((x, y), (y, x)):
            if not divisor:
                continue
            quotient, rest = divmod(dividend * self._scale, divisor)
            if rest == 0:
                yield quotient
            half_up = 200 * dividend + divisor
            hundredths = half_up // (2 * divisor)
            ratio = hundredths * self._scale // _HUNDRED
            if ratio in self._rounded:
                yield ratio

    def _is_rounded_quotient(self, x: int) -> bool:
        """Whether x is y / z, rounded to two decimals, for some y and z."""
        values = sorted(self._values.elements())
        factor, scale = 200 * self._scale, self._scale
        for y in self._values:
            # x - 0.005 <= y / z < x + 0.005, solved for z.
            low = factor * y // (200 * x + scale) + 1
            high = factor * y // (200 * x - scale)
            divisors = bisect_right(values, high) - bisect_left(values, low)
            if divisors > (low <= y <= high):
                return True
        return False

    def _has(self, z: int, y: int) -> bool:
        """Whether z is among the numbers, besides the y already taken from them."""
        needed = 2 if z == y else 1
        return self._values.get(z, 0) >= needed
