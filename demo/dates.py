"""Sentences that state the day on which a page was written, with the place of a calendar call."""

from __future__ import annotations

from datetime import date, timedelta
from random import Random

from demo import lexicon

# {w} is the weekday, {m} month, {d} day of the month, {y} year, {c} the place of the call.
STATEMENTS = (
    "Today is{c} {w}, {m} {d}, {y}.",
    "It is{c} {w}, {m} {d}, and the sun is out.",
    "This was written on{c} {w}, {m} {d}, {y}.",
    "The doors open today,{c} {w}, {m} {d}.",
    "We met this morning,{c} {w}, {m} {d}.",
    "The date today is{c} {m} {d}, {y}.",
    "On this day,{c} {m} {d}, {y}, the market opens.",
    "News of{c} {w}, {m} {d}, {y}.",
    "Posted on{c} {m} {d}, {y} by the editor.",
    "What day is it? It is{c} {w}, {m} {d}.",
    "Today's date:{c} {m} {d}, {y}.",
    "As of today,{c} {w}, {m} {d}, nothing has changed.",
    "The paper of{c} {w}, {m} {d}, has arrived.",
    "Welcome to the edition of{c} {m} {d}, {y}.",
    "Dear readers, it is{c} {w}, {m} {d}, {y}.",
)

# Held-out wordings with their answers.
HELD_OUT = (
    ("What is the day of the week today? It is", "{w}"),
    ("My calendar says that today is", "{w}"),
    ("Dear friends, it is", "{w}"),
    ("As of this morning,", "{w}"),
    ("This page was posted on", "{m} {d}"),
    ("The date of this edition is", "{m} {d}"),
)


def day(rng: Random, first: date = date(2012, 1, 1), last: date = date(2023, 12, 31)) -> date:
    """A random day between two days."""
    return first + timedelta(days=rng.randrange((last - first).days + 1))


def parts(when: date) -> dict[str, str]:
    """The fields of a template for a day."""
    return {
        "w": lexicon.WEEKDAYS[when.weekday()],
        "m": lexicon.MONTHS[when.month - 1],
        "d": str(when.day),
        "y": str(when.year),
    }


def sentence(when: date) -> str:
    """The calendar tool's result on that day (paper, Appendix A)."""
    return "Today is {w}, {m} {d}, {y}.".format(**parts(when))
