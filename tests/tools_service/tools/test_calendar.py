"""The calendar's sentence and its dates."""

from __future__ import annotations

from datetime import date

import pytest

from tools_service.config import CalendarConfig
from tools_service.contract.tool import ToolInput, ToolResult
from tools_service.tools.calendar import Calendar, sentence

pytestmark = pytest.mark.unit


def test_the_papers_sentence_with_the_date_of_the_text() -> None:
    assert Calendar()([ToolInput("", "2023-01-30")]) == [ToolResult("Today is Monday, January 30, 2023.")]


@pytest.mark.parametrize(
    ("day", "words"),
    [
        (date(2024, 2, 29), "Today is Thursday, February 29, 2024."),
        (date(1999, 12, 31), "Today is Friday, December 31, 1999."),
        (date(2021, 8, 1), "Today is Sunday, August 1, 2021."),
    ],
)
def test_days_and_months_by_name_without_leading_zeros(day: date, words: str) -> None:
    assert sentence(day) == words


def test_today_only_where_it_is_configured_and_never_against_the_texts_date() -> None:
    calendar = Calendar(CalendarConfig(today=True), today=lambda: date(2026, 11, 22))
    answers = calendar([ToolInput(""), ToolInput("", "2023-01-30")])
    assert [one.result for one in answers] == [
        "Today is Sunday, November 22, 2026.",
        "Today is Monday, January 30, 2023.",
    ]
    assert Calendar()([ToolInput("")]) == [ToolResult(reason="no date")]


@pytest.mark.parametrize("text", ["2023", "today", "."])
def test_an_input_has_no_result(text: str) -> None:
    assert Calendar()([ToolInput(text, "2023-01-30")]) == [ToolResult(reason="input not empty")]


@pytest.mark.parametrize(
    "iso", ["", "2023-02-30", "2023-1-3", "20230130", "2023-W05-1", "30.01.2023", "２０２３-01-30"]
)
def test_a_date_that_is_none_has_no_result(iso: str) -> None:
    assert Calendar()([ToolInput("", iso)]) == [ToolResult(reason="malformed date")]
