"""The calendar (paper section 3): ``Calendar()`` answers ``Today is Monday, January 30, 2023.``

While annotating, "today" is the date of the text the call stands in; at inference it is the given day or,
where the configuration says so, today's. In: an empty input with an ISO date. It does no arithmetic on dates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import date

from tools_service.config import CalendarConfig
from tools_service.tools.contract import ToolInput, ToolResult

# Not strftime: its names follow the process's locale.
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_ISO = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_ANNOTATING = CalendarConfig()


class Calendar:
    """`Calendar()`: the sentence with the call's date. `today` supplies one to calls without, where the
    configuration wants that.
    """

    name = "Calendar"

    def __init__(
        self, config: CalendarConfig = _ANNOTATING, *, today: Callable[[], date] = date.today
    ) -> None:
        self._today = today if config.today else None

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """One sentence for each input, or the reason for none."""
        return [self._one(one) for one in inputs]

    def _one(self, one: ToolInput) -> ToolResult:
        if one.text.strip():
            return ToolResult(reason="input not empty")
        if one.date is None:
            return ToolResult(sentence(self._today())) if self._today else ToolResult(reason="no date")
        try:
            if not _ISO.fullmatch(one.date):  # fromisoformat also takes weeks and bare digits
                raise ValueError
            return ToolResult(sentence(date.fromisoformat(one.date)))
        except ValueError:
            return ToolResult(reason="malformed date")


def sentence(day: date) -> str:
    """``Today is Monday, January 30, 2023.``"""
    return f"Today is {_DAYS[day.weekday()]}, {_MONTHS[day.month - 1]} {day.day}, {day.year}."
