"""Functions that select texts, as a user writes them."""

from __future__ import annotations

from pipeline.method.selection import Selection, TextToSelect


def a_bool(text: str) -> bool:
    return "km" in text


def a_reason(text: str) -> bool | str:
    return "km" in text or "no distance"


def a_selection(to_select: TextToSelect) -> Selection:
    return Selection(f"it has {len(to_select.text)} characters", True, "2023-01-30")


def raises(text: str) -> bool:
    return bool(1 / 0)


def returns_a_number(text: str) -> int:
    return 1


def the_text(text: str) -> str:
    return text
