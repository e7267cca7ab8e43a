"""A result stands safely inside a call, whatever a tool returned."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools_service.tools.sanitize import clean

pytestmark = pytest.mark.unit


def bytes_of(text: str) -> int:
    """The count of a byte-level tokenizer."""
    return len(text.encode())


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("35", "35"),
        ("a] then [Calculator(1)", "a) then (Calculator(1)"),
        ("a -> b --> c", "a => b -=> c"),
        ("one\r\ntwo\tthree\x00four\u2028five\x85six", "one two three four five six"),
        ("  wide   spaces ", "wide spaces"),
        ("\x1b[31mred", "(31mred"),
        ("［x］ －＞ ﹇y﹈", "(x) => (y)"),
        ("-\u200d> -\u202e>", "=> =>"),
        ("-\ufe0f> -\u0338> -\U000e0101> \uff0d\u0301\u200c\ufe65", "=> => => =>"),
        ("\u202d[\u200d]\u2060", "(\u200d)"),
        ("half \ud800 a pair", "half a pair"),
        ("\u202eturned\u202c", "turned"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("\x00\n ", ""),
    ],
)
def test_markers_and_control_characters_are_neutralised(text: str, cleaned: str) -> None:
    assert clean(text, 100) == cleaned


def test_long_results_are_cut_at_the_last_word_that_fits() -> None:
    assert clean("one two three", 2) == "one two"
    assert clean("one two three", 9, bytes_of) == "one two"
    assert clean("one two three", 13, bytes_of) == "one two three"


def test_a_word_that_is_too_long_is_cut_inside() -> None:
    assert clean("incomprehensibilities and more", 5, bytes_of) == "incom"


def test_a_megabyte_counts_few_tokens_and_ends_at_a_word() -> None:
    counted: list[int] = []

    def count(text: str) -> int:
        counted.append(len(text))
        return len(text.split())

    text = clean("extraordinarily " * 70_000, 50, count)
    assert text.split() == ["extraordinarily"] * 50
    assert sum(counted) < 50_000


def test_every_character_that_a_tokenizer_may_fold_to_a_marker_is_replaced() -> None:
    variants: dict[str, list[str]] = {marker: [] for marker in "[]->"}
    for character in map(chr, (*range(0xD800), *range(0xE000, 0x11000))):
        for marker in variants.keys() & set(unicodedata.normalize("NFKD", character)):
            variants[marker].append(character)
    assert all(len(found) >= 3 for found in variants.values())
    for character in (*variants["["], *variants["]"]):
        assert clean(f"a {character} b", 100) in ("a ( b", "a ) b")
    for dash in variants["-"]:
        for angle in variants[">"]:
            assert clean(f"a {dash}{angle} b", 100) == "a => b"


@given(st.text(), st.integers(1, 30))
def test_any_text_keeps_to_the_rules(text: str, most: int) -> None:
    cleaned = clean(text, most, bytes_of)
    folded = unicodedata.normalize("NFKC", cleaned)
    assert not {"[", "]"} & set(folded)
    assert "->" not in folded
    assert cleaned.isprintable() or all(
        c.isprintable() or c in "\u200c\u200d" or ord(c) > 0x7F for c in cleaned
    )
    assert "\n" not in cleaned
    assert bytes_of(cleaned) <= most
    assert clean(cleaned, most, bytes_of) == cleaned


@given(st.text(alphabet="-> [](\x00\n\u200d\u200b\ufe0f\uff0d\uff1ea)", max_size=12))
def test_no_arrangement_of_the_markers_survives(text: str) -> None:
    folded = unicodedata.normalize("NFKC", clean(text, 100))
    folded = folded.replace("\u200d", "").replace("\ufe0f", "")
    assert not {"[", "]"} & set(folded)
    assert "->" not in folded
