"""The calendar (paper section 3): ``Calendar()`` answers ``Today is Monday, January 30, 2023.``

In: an empty input with an ISO date. Out: the sentence, or the reason for none. During annotation,
the date is that of the text; at inference it is the given day, or today if the configuration allows
that. It does no arithmetic on dates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import date

from tools_service.config import CalendarConfig
from tools_service.contract.tool import ToolInput, ToolResult

# Not strftime, whose names follow the locale of the process.
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_ISO_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DEFAULT = CalendarConfig()


class Calendar:
    """`Calendar()`: a list of empty inputs with dates to a list of sentences or reasons."""

    name = "Calendar"
    Config = CalendarConfig

    def __init__(self, config: CalendarConfig = _DEFAULT, *, today: Callable[[], date] = date.today) -> None:
        """`today` gives the date of calls without one, if the configuration allows that."""
        self._today = today if config.today else None

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """Return a sentence, or the reason for none, for each input."""
        return [self._answer(call) for call in inputs]

    def _answer(self, call: ToolInput) -> ToolResult:
        if call.text.strip():
            return ToolResult(reason="input not empty")
        if call.date is None:
            return ToolResult(sentence(self._today())) if self._today else ToolResult(reason="no date")
        try:
            if not _ISO_DATE.fullmatch(call.date):  # fromisoformat also takes weeks and bare digits
                raise ValueError
            return ToolResult(sentence(date.fromisoformat(call.date)))
        except ValueError:
            return ToolResult(reason="malformed date")


def sentence(day: date) -> str:
    """Return ``Today is Monday, January 30, 2023.``"""
    return f"Today is {_DAYS[day.weekday()]}, {_MONTHS[day.month - 1]} {day.day}, {day.year}."
