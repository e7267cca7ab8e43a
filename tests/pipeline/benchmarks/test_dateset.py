"""Dateset's answers, found again from the questions' texts with dateutil and pandas."""

from __future__ import annotations

import functools
import re
from collections import Counter
from datetime import date, timedelta
from pathlib import Path

import pytest
from dateutil.parser import parse
from dateutil.relativedelta import relativedelta
from pandas.tseries.holiday import USFederalHolidayCalendar

from pipeline.benchmarks.dateset import HOLIDAYS, holiday, moved, whole_units
from pipeline.benchmarks.example import BenchmarkFileError, Example
from pipeline.benchmarks.published import load
from pipeline.evaluation.scoring import is_right

pytestmark = pytest.mark.unit

QUESTIONS = load("dateset", Path("0")).examples
RELATIVE = {
    "the day before yesterday": -2,
    "yesterday": -1,
    "today": 0,
    "tomorrow": 1,
    "the day after tomorrow": 2,
}
PANDAS_NAMES = {
    "Birthday of Martin Luther King, Jr.": "Martin Luther King Jr. Day",
    "Juneteenth National Independence Day": "Juneteenth",
    "Thanksgiving": "Thanksgiving Day",
    "Christmas": "Christmas Day",
}
BETWEEN = re.compile(r"How many (\w+) (?:ago was|are there until) (.+?)( this year)?\?")
AWAY = re.compile(r"What (.+) (?:was it|will it be in) (\d+) (\w+?)s?( ago)?\?")
ON = re.compile(r"What day of the week (?:is|was) it on (.+)\?")
RELATIVE_DAY = re.compile(r"What (.+) (?:is|was) it (.+)\?")
THIS_YEAR = re.compile(r"What (.+) (?:is|was) (.+) this year\?")

KIND, UNIT = "day of the week|day of the month|month|year", "days|weeks|months|years"
GROUPS = {  # the templates of Appendix D; DATE is January 30, 2023
    "days between": r"How many days (ago was|are there until) [A-Z]\w+ \d+, \d{4}\?",
    "units ago": rf"What ({KIND}) was it \d+ (day|week|month|year)s? ago\?",
    "in units": rf"What ({KIND}) will it be in \d+ (day|week|month|year)s?\?",
    "weekday of a date": r"What day of the week (is|was) it on [A-Z]\w+ \d+, \d{4}\?",
    "relative day": rf"What ({KIND}) (is|was) it ({'|'.join(RELATIVE)})\?",
    "holiday": rf"What (day of the week|day of the month|month) (is|was) ({'|'.join(HOLIDAYS)}) this year\?",
    "time to a holiday": rf"How many ({UNIT}) (ago was|are there until) ({'|'.join(HOLIDAYS)}) this year\?",
}


@functools.cache
def federal_holidays(year: int) -> dict[str, date]:
    """pandas' holidays, on their own dates instead of the days on which offices are closed."""
    found = {}
    for rule in USFederalHolidayCalendar().rules:
        [day] = rule.dates(f"{year}-01-01", f"{year}-12-31") if rule.observance is None else [None]
        name = PANDAS_NAMES.get(rule.name, rule.name)
        found[name] = date(year, rule.month, rule.day) if day is None else day.date()
    return found


def shown(day: date, kind: str) -> str:
    form = {"day of the week": "%A", "day of the month": "%d", "month": "%B", "year": "%Y"}[kind]
    return day.strftime(form).lstrip("0")


def expected(example: Example) -> str:
    """The answer to a question, by another calendar."""
    today = date.fromisoformat(example.date or "")
    if match := BETWEEN.fullmatch(example.q):
        unit, other, is_holiday = match.groups()
        day = federal_holidays(today.year)[other] if is_holiday else parse(other).date()
        apart = abs((today - day).days)
        step = relativedelta(max(today, day), min(today, day))
        months = step.years * 12 + step.months
        return str({"days": apart, "weeks": apart // 7, "months": months, "years": months // 12}[unit])
    if match := AWAY.fullmatch(example.q):
        kind, number, unit, ago = match.groups()
        step = relativedelta(**{f"{unit}s": int(number)})
        return shown(today - step if ago else today + step, kind)
    if match := ON.fullmatch(example.q):
        return shown(parse(match[1]).date(), "day of the week")
    if (match := RELATIVE_DAY.fullmatch(example.q)) and match[2] in RELATIVE:
        return shown(today + timedelta(days=RELATIVE[match[2]]), match[1])
    match = THIS_YEAR.fullmatch(example.q)
    assert match is not None, example.q
    return shown(federal_holidays(today.year)[match[2]], match[1])


def test_every_answer_is_that_of_another_calendar() -> None:
    wrong = [(example, expected(example)) for example in QUESTIONS if expected(example) != example.answers[0]]
    assert not wrong


def test_there_are_9400_questions_of_the_papers_kinds() -> None:
    assert len(QUESTIONS) == len({example.id for example in QUESTIONS}) == 9_400
    sizes = Counter(example.id.rpartition("-")[0] for example in QUESTIONS)
    assert Counter(sizes.values()) == {200: 32, 600: 3, 300: 4}  # 2 + 4 + 4 + 2 + 20 variants of 200
    groups: Counter[str] = Counter()
    for example in QUESTIONS:
        groups[next(group for group, form in GROUPS.items() if re.fullmatch(form, example.q))] += 1
    assert groups == {
        "days between": 400,
        "units ago": 800,
        "in units": 800,
        "weekday of a date": 400,
        "relative day": 4_000,
        "holiday": 1_800,
        "time to a holiday": 1_200,
    }
    assert len({example.date for example in QUESTIONS}) == 500
    assert all("2020-12-31" < (example.date or "") < "2031" for example in QUESTIONS)


def test_the_tense_fits_the_day() -> None:
    for example in QUESTIONS:
        if example.id.startswith("holiday-"):
            today = date.fromisoformat(example.date or "")
            name = next(name for name in HOLIDAYS if name in example.q)
            assert (" was " in example.q) == (holiday(name, today.year) < today)


def test_a_seed_gives_the_same_questions_and_another_seed_others() -> None:
    assert load("dateset", Path("0")).examples == QUESTIONS
    assert load("dateset", Path("1")).examples != QUESTIONS
    with pytest.raises(BenchmarkFileError, match="is generated, give a seed"):
        load("dateset", Path("Dateset.json"))


def test_a_day_of_the_month_may_have_an_ending() -> None:
    endings = {e.answers for e in QUESTIONS if "day of the month" in e.q}
    assert {
        ("1", "1st"),
        ("2", "2nd"),
        ("3", "3rd"),
        ("11", "11th"),
        ("22", "22nd"),
        ("30", "30th"),
    } <= endings
    assert is_right("first_words:5", " It was the 22nd.", ("22", "22nd"))
    assert is_right("first_words:5", " 22.", ("22", "22nd"))


@pytest.mark.parametrize("year", range(2021, 2031))
def test_the_holidays_are_those_of_pandas(year: int) -> None:
    assert {name: holiday(name, year) for name in HOLIDAYS} == federal_holidays(year)


@pytest.mark.parametrize(
    ("day", "number", "unit", "other"),
    [
        ("2024-01-31", 1, "months", "2024-02-29"),
        ("2024-02-29", 1, "years", "2025-02-28"),
        ("2024-02-29", -4, "years", "2020-02-29"),
        ("2024-01-01", -1, "days", "2023-12-31"),
        ("2024-03-31", -1, "months", "2024-02-29"),
        ("2024-12-15", 1, "months", "2025-01-15"),
        ("2024-02-28", 1, "weeks", "2024-03-06"),
    ],
)
def test_dates_are_moved_as_dateutil_moves_them(day: str, number: int, unit: str, other: str) -> None:
    start = date.fromisoformat(day)
    assert moved(start, number, unit).isoformat() == other
    assert start + relativedelta(**{unit: number}) == date.fromisoformat(other)


def test_whole_units_are_rounded_down() -> None:
    one, other = date(2024, 1, 31), date(2024, 12, 30)
    assert [whole_units(one, other, unit) for unit in ("days", "weeks", "months", "years")] == [
        334,
        47,
        10,
        0,
    ]
