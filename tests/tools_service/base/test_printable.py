"""Strings of strangers become one valid line of bounded length, and healthy ones stay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools_service.base.printable import printable

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "text", ["", "a b", "Ärger", "日本語", "\u00a0", "👩\u200d🚀", "a\u0301", "\\n", "\u202bمرحبا"]
)
def test_healthy_strings_stay(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\x1b[31m", "a\\x1b[31m"), ("\n\t\0", "\\n\\t\\x00"), ("\ud800", "\\ud800"), ("\u2028", "\\u2028")],
)
def test_what_breaks_a_line_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(), max_size=400))
def test_the_result_is_one_line_of_utf8(text: str) -> None:
    shown = printable(text, 100)
    shown.encode()
    assert len(shown.splitlines()) <= 1
    assert len(shown) <= 100 * 10 + 40


def test_a_long_string_is_cut_and_says_so() -> None:
    assert printable("x" * 60_000_000, 5) == "xxxxx… (60,000,000 characters)"
