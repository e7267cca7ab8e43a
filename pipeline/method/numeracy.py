"""Signs of arithmetic in a text: what step 1 goes by for the calculator (paper Appendix A).

In: a text. Out: its numbers with their token positions; whether three of them within a window of tokens are
an operation and its result; whether a phrase announces a result. Values are integers scaled by a power of
ten, so that 0.1 + 0.2 is 0.3. Makes no choice (selection.py does) and is no part of the calculator tool.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right, insort
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

# A run of digits with its separators, a run of letters, or one other character: on English web text, 1.1 of
# GPT-2's tokens each (docs/decisions/0008).
_TOKEN = re.compile(r"[0-9][0-9.,]*|[^\W\d_]+|\S")

# Not inside a word or a dotted sequence (B2B, 192.168.1.1, 3.14.2) and no ordinal; 5kg and $5 do count.
_NUMBER = re.compile(
    r"(?<![\w.])(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
    r"(?![0-9]|\.[0-9]|(?:st|nd|rd|th)\b)"
)

_RESULT = re.compile(
    r"(?:=|\b(?:equals|equal\s+to|total\s+of|average\s+of)\b)\s*[-+]?\s?[$£€]?[0-9]", re.IGNORECASE
)

# Beyond these a run of digits is an identifier or a coordinate rather than a quantity.
_MAX_WHOLE_DIGITS = 15
_MAX_DECIMALS = 6
_HUNDRED = 100


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it is written: digits / 10**decimals, at the token `position` of the text."""

    position: int
    digits: int
    decimals: int

    @property
    def may_be_rounded(self) -> bool:
        """Whether it can be a rounded quotient: it has two decimals and is not 0.00, which says nothing."""
        return self.decimals == 2 and self.digits > 0

    def scaled(self, places: int) -> int:
        """The value times 10**places, exact for places >= decimals."""
        factor: int = 10 ** (places - self.decimals)
        return self.digits * factor


def find_numbers(text: str) -> list[Number]:
    """The numbers of a text in order, signs left out: a - b = c is also c + b = a."""
    starts = [match.start() for match in _TOKEN.finditer(text)]
    numbers = []
    for match in _NUMBER.finditer(text):
        whole, _, fraction = match[0].replace(",", "").partition(".")
        if len(whole) <= _MAX_WHOLE_DIGITS and len(fraction) <= _MAX_DECIMALS:
            position = bisect_right(starts, match.start()) - 1
            numbers.append(Number(position, int(whole + fraction), len(fraction)))
    return numbers


def announces_result(text: str) -> bool:
    """Whether `=`, `equals`, `equal to`, `total of` or `average of` stands before a number."""
    return _RESULT.search(text) is not None


def has_computed_number(numbers: Sequence[Number], window: int) -> bool:
    """Whether three numbers within `window` tokens are an operation of + - * / and its result.

    The operands and the result come in any order. A quotient counts if it is exact, or if the result is
    written with two decimals, not 0.00, and is the quotient rounded half up. The time goes with the numbers
    times the window, for any numbers.
    """
    places = max((number.decimals for number in numbers), default=0)
    recent = _Window(10**places)
    for number in numbers:
        recent.forget_before(number.position - window + 1)
        if recent.completes(number.scaled(places), number.may_be_rounded):
            return True
        recent.add(number.position, number.scaled(places), number.may_be_rounded)
    return False


class _Window:
    """The numbers of the last tokens, to be asked for the third of a triple. Values are scaled."""

    def __init__(self, scale: int) -> None:
        self._scale = scale
        self._items: deque[tuple[int, int, bool]] = deque()
        self._values: Counter[int] = Counter()
        self._sorted: list[int] = []
        self._times_scale: set[int] = set()
        self._cents: Counter[int] = Counter()  # those that may be rounded, in hundredths

    def add(self, position: int, value: int, may_be_rounded: bool) -> None:
        self._items.append((position, value, may_be_rounded))
        self._values[value] += 1
        self._times_scale.add(value * self._scale)
        insort(self._sorted, value)
        if may_be_rounded:
            self._cents[value * _HUNDRED // self._scale] += 1

    def forget_before(self, position: int) -> None:
        while self._items and self._items[0][0] < position:
            _, value, may_be_rounded = self._items.popleft()
            del self._sorted[bisect_left(self._sorted, value)]
            if may_be_rounded:
                _take_one(self._cents, value * _HUNDRED // self._scale)
            if not _take_one(self._values, value):
                self._times_scale.remove(value * self._scale)

    def completes(self, x: int, may_be_rounded: bool) -> bool:
        """Whether x and two numbers of the window are an operation and its result."""
        if self._may_complete(x) and any(self._exact(x, y) or self._rounded(x, y) for y in self._values):
            return True
        return may_be_rounded and self._is_rounded_quotient(x)

    def _may_complete(self, x: int) -> bool:
        """What `_exact` and `_rounded` ask, of all y at once, but z may be y itself: cheap, and mostly no."""
        values, scale = self._values.keys(), self._scale
        if not (values.isdisjoint(map(x.__add__, values)) and values.isdisjoint(map(x.__sub__, values))):
            return True
        if not self._times_scale.isdisjoint(map(x.__mul__, values)):
            return True
        if any(y and x * scale % y == 0 and x * scale // y in values for y in values):
            return True
        cents = self._cents
        return bool(cents) and any(
            (y and _rounded_ratio(x, y) in cents) or (x and _rounded_ratio(y, x) in cents) for y in values
        )

    def _exact(self, x: int, y: int) -> bool:
        """Whether x + y, x - y, y - x, x * y, x / y or y / x is in the window besides y."""
        if self._has(x + y, y) or self._has(abs(x - y), y):
            return True
        product, rest = divmod(x * y, self._scale)
        if rest == 0 and self._has(product, y):
            return True
        for dividend, divisor in ((x, y), (y, x)):
            quotient, rest = divmod(dividend * self._scale, divisor) if divisor else (0, 1)
            if rest == 0 and self._has(quotient, y):
                return True
        return False

    def _rounded(self, x: int, y: int) -> bool:
        """Whether x / y or y / x, rounded to two decimals, is in the window so written, besides y."""
        return any(
            divisor != 0
            and (cents := _rounded_ratio(dividend, divisor)) in self._cents
            and self._has(cents * self._scale // _HUNDRED, y)
            for dividend, divisor in ((x, y), (y, x))
        )

    def _is_rounded_quotient(self, x: int) -> bool:
        """Whether y / z, rounded to two decimals, is x, for some y and z in the window."""
        factor, scale = 200 * self._scale, self._scale
        for y in self._values:
            # x - 0.005 <= y / z < x + 0.005, solved for z
            low = factor * y // (200 * x + scale) + 1
            high = factor * y // (200 * x - scale)
            if high < self._sorted[0]:
                continue
            divisors = bisect_right(self._sorted, high) - bisect_left(self._sorted, low)
            if divisors > (low <= y <= high):
                return True
        return False

    def _has(self, z: int, y: int) -> bool:
        """Whether z is in the window besides y, which is."""
        return self._values.get(z, 0) > (z == y)


def _rounded_ratio(dividend: int, divisor: int) -> int:
    """The quotient in hundredths, rounded half up."""
    return (200 * dividend + divisor) // (2 * divisor)


def _take_one(counts: Counter[int], key: int) -> int:
    """Lower a count by one and return it; a count of nothing is forgotten."""
    counts[key] -= 1
    return counts[key] if counts[key] else counts.pop(key)
