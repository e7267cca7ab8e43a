"""Dateset: 9,400 questions about dates, relative to a day of their own (paper section 4.2.5, Appendix D).

In: a seed. Out: the questions with their day, which the calendar answers with. A seed draws 500 days
from 2021 to 2030; a question takes one of them, and a date within four years of it. Decisions that the
paper leaves open: a day of the month may be answered as "14" or "14th"; weeks, months and years
between two dates are whole ones, rounded down; a month or year away keeps the day of the month, or the
last day of a shorter month; holidays are the eleven federal holidays of the United States.
"""

from __future__ import annotations

import random
from calendar import SUNDAY, monthrange
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from functools import partial
from pathlib import Path

from pipeline.benchmarks.example import BenchmarkFileError, Example, Examples

_FIRST, _LAST = date(2021, 1, 1), date(2030, 12, 31)  # Juneteenth is a holiday since 2021
_DAYS = 500
_YEARS = 4
_PER_UNIT = {"days": 365, "weeks": 52, "months": 12, "years": 1}  # the largest N is 4 years
_RELATIVE = {
    "the day before yesterday": -2,
    "yesterday": -1,
    "today": 0,
    "tomorrow": 1,
    "the day after tomorrow": 2,
}
_FIXED = {  # month, day
    "New Year's Day": (1, 1),
    "Juneteenth": (6, 19),
    "Independence Day": (7, 4),
    "Veterans Day": (11, 11),
    "Christmas Day": (12, 25),
}
_NTH_WEEKDAY = {  # month, weekday from Monday = 0, which of them: 5 is the last
    "Martin Luther King Jr. Day": (1, 0, 3),
    "Washington's Birthday": (2, 0, 3),
    "Memorial Day": (5, 0, 5),
    "Labor Day": (9, 0, 1),
    "Columbus Day": (10, 0, 2),
    "Thanksgiving Day": (11, 3, 4),
}
HOLIDAYS = (*_FIXED, *_NTH_WEEKDAY)

Draw = Callable[[random.Random, date], tuple[str, tuple[str, ...]]]
"""A question of one variant for a day, with its answers."""


def dateset(name: str, source: Path) -> Examples:
    """The questions of the seed that `source` is: `dateset=0`."""
    if not str(source).isdecimal():
        raise BenchmarkFileError(f"{name}={source}: Dateset is generated, give a seed from 0 on: {name}=0")
    rng = random.Random(f"dateset {int(str(source))}")
    span = (_LAST - _FIRST).days
    days = [_FIRST + timedelta(days=offset) for offset in rng.sample(range(span + 1), _DAYS)]
    examples = []
    for label, number, draw in _variants():
        for index in range(number):
            day = rng.choice(days)
            question, answers = draw(rng, day)
            examples.append(Example(f"{label}-{index}", "", question, answers, day.isoformat()))
    return Examples(examples)


def _variants() -> Iterator[tuple[str, int, Draw]]:
    """Name, number of questions, and draw of each variant: 9,400 questions in seven groups."""
    yield "days-ago", 200, partial(_days_between, past=True)
    yield "days-until", 200, partial(_days_between, past=False)
    for past in (True, False):
        for kind in _KINDS:
            yield f"{'ago' if past else 'in'}-{kind}", 200, partial(_units_away, kind=kind, past=past)
    yield "weekday-was", 200, partial(_weekday_of, past=True)
    yield "weekday-is", 200, partial(_weekday_of, past=False)
    for kind in _KINDS:
        for relative in _RELATIVE:
            yield f"{kind}-{relative}", 200, partial(_relative_day, kind=kind, relative=relative)
    for kind in ("day of the week", "day of the month", "month"):
        yield f"holiday-{kind}", 600, partial(_holiday, kind=kind)
    for unit in _PER_UNIT:
        yield f"holiday-{unit}", 300, partial(_until_holiday, unit=unit)


def _days_between(rng: random.Random, day: date, *, past: bool) -> tuple[str, tuple[str, ...]]:
    other, days = _other_date(rng, day, past=past)
    question = "How many days ago was {}?" if past else "How many days are there until {}?"
    return question.format(written(other)), (str(days),)


def _units_away(rng: random.Random, day: date, *, kind: str, past: bool) -> tuple[str, tuple[str, ...]]:
    unit = rng.choice(list(_PER_UNIT))
    number = rng.randint(1, _YEARS * _PER_UNIT[unit])
    amount = f"{number} {unit if number > 1 else unit[:-1]}"
    question = f"What {kind} was it {amount} ago?" if past else f"What {kind} will it be in {amount}?"
    return question, _KINDS[kind](moved(day, -number if past else number, unit))


def _weekday_of(rng: random.Random, day: date, *, past: bool) -> tuple[str, tuple[str, ...]]:
    other, _ = _other_date(rng, day, past=past)
    question = f"What day of the week {'was' if past else 'is'} it on {written(other)}?"
    return question, _KINDS["day of the week"](other)


def _relative_day(_: random.Random, day: date, *, kind: str, relative: str) -> tuple[str, tuple[str, ...]]:
    days = _RELATIVE[relative]
    question = f"What {kind} {'was' if days < 0 else 'is'} it {relative}?"
    return question, _KINDS[kind](day + timedelta(days=days))


def _holiday(rng: random.Random, day: date, *, kind: str) -> tuple[str, tuple[str, ...]]:
    name = rng.choice(HOLIDAYS)
    other = holiday(name, day.year)
    return f"What {kind} {'was' if other < day else 'is'} {name} this year?", _KINDS[kind](other)


def _until_holiday(rng: random.Random, day: date, *, unit: str) -> tuple[str, tuple[str, ...]]:
    name = rng.choice(HOLIDAYS)
    other = holiday(name, day.year)
    tense = "ago was" if other < day else "are there until"
    return f"How many {unit} {tense} {name} this year?", (str(whole_units(day, other, unit)),)


def _other_date(rng: random.Random, day: date, *, past: bool) -> tuple[date, int]:
    days = rng.randint(1, _YEARS * 365)
    return day + timedelta(days=-days if past else days), days


_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip  # not strftime, which depends on the locale
_KINDS: dict[str, Callable[[date], tuple[str, ...]]] = {
    "day of the week": lambda day: (_WEEKDAYS[day.weekday()],),
    "day of the month": lambda day: (str(day.day), f"{day.day}{_ordinal(day.day)}"),
    "month": lambda day: (_MONTHS[day.month - 1],),
    "year": lambda day: (str(day.year),),
}


def written(day: date) -> str:
    """`January 30, 2023`."""
    return f"{_MONTHS[day.month - 1]} {day.day}, {day.year}"


def moved(day: date, number: int, unit: str) -> date:
    """The date `number` days, weeks, months or years from `day`; negative numbers go back."""
    if unit in ("days", "weeks"):
        return day + timedelta(**{unit: number})
    months = day.year * 12 + day.month - 1 + number * (12 if unit == "years" else 1)
    year, month = months // 12, months % 12 + 1
    return date(year, month, min(day.day, monthrange(year, month)[1]))


def whole_units(one: date, other: date, unit: str) -> int:
    """Whole days, weeks, months or years between two dates."""
    earlier, later = sorted((one, other))
    days = (later - earlier).days
    if unit in ("days", "weeks"):
        return days if unit == "days" else days // 7
    months = (later.year - earlier.year) * 12 + later.month - earlier.month
    if moved(earlier, months, "months") > later:
        months -= 1
    return months if unit == "months" else months // 12


def holiday(name: str, year: int) -> date:
    """The date of a federal holiday of the United States; its own, not the day on which offices close."""
    if name in _FIXED:
        return date(year, *_FIXED[name])
    month, weekday, nth = _NTH_WEEKDAY[name]
    first, length = monthrange(year, month)
    days = range(1 + (weekday - first) % (SUNDAY + 1), length + 1, 7)
    return date(year, month, days[min(nth, len(days)) - 1])


def _ordinal(number: int) -> str:
    return "th" if number in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
