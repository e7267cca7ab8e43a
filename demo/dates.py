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

# Held-out wordings by kind of answer: only questions use them, never pages. The calendar's result has each
# answer, and the training texts have each word of a wording.
HELD_OUT: dict[str, tuple[str, ...]] = {
    "{w}": (
        "What is the day of the week today? It is",
        "My calendar says that today is",
        "Dear friends, it is",
        "As of this morning,",
        "Question: Which day of the week is it? Answer:",
        "The day of the week is",
        "Which day of the week is it today? It is",
        "Today is a",
    ),
    "{m} {d}": (
        "This page was posted on",
        "The date of this edition is",
        "What is the date today? It is",
        "Question: What is the date? Answer:",
        "The day on which this was posted is",
        "The day of this edition is",
        "The paper is of",
        "The news of this page are of",
    ),
    "{w}, {m} {d}": (
        "Which day and date is it today? It is",
        "Question: Which day of the week and which date is it? Answer:",
        "The day of the week and the date of today are",
        "We open the doors this morning,",
        "The market opens this morning,",
        "Welcome, dear readers, on this",
        "This letter was written today,",
        "The edition that you read is of",
    ),
    "{m} {d}, {y}": (
        "What is the whole date today? It is",
        "Question: What is today's date with the year? Answer:",
        "The whole date of today is",
        "The date and the year of today are",
        "The day and the year of this edition are",
        "This letter was written on",
        "The editor posted this page on",
        "Written by the editor on",
    ),
    "{w}, {m} {d}, {y}": (
        "What day of the week, date and year is it? It is",
        "Question: What is the whole date of today, and which day of the week is it? Answer:",
        "The day of the week and the whole date are",
        "The day of the week, the date and the year are",
        "Today in the news: the day of the week and the whole date,",
        "The whole date of this edition, with the day of the week, is",
        "The day of the week and the date of this letter, with the year, are",
        "With the day of the week and the year, the date of today is",
    ),
    "{y}": (
        "Which year is it now? It is",
        "Question: What year is it? Answer:",
        "The year is",
        "We are in the year",
        "This year is",
        "The year of this edition is",
        "My calendar is for the year",
        "The paper was written in the year",
    ),
}


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
