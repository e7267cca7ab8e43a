"""Numbers as they are written, and whether three of them are an operation and its result."""

from __future__ import annotations

import random
import re
from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.method.numeracy import Number, announces_result, find_numbers, has_computed_number

pytestmark = pytest.mark.unit


def values(text: str) -> list[str]:
    return [str(number.digits / 10**number.decimals) for number in find_numbers(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,234,567.50 and 12", ["1234567.5", "12.0"]),
        ("from 3-5 or 7/8, (9)", ["3.0", "5.0", "7.0", "8.0", "9.0"]),
        ("1,2,3 and 12,34 and 1234,567", ["1.0", "2.0", "3.0", "12.0", "34.0", "1234.0", "567.0"]),
        ("$5, 20% of 7kg. Then 8.", ["5.0", "20.0", "7.0", "8.0"]),
        ("B2B, MP3, the 3rd of 192.168.1.1, version 1.2.3", []),
        ("no. 12345678901234567890 at 40.71277531", []),
        ("٣ and ³ and ５", []),
    ],
)
def test_numbers(text: str, expected: list[str]) -> None:
    assert values(text) == expected


def test_positions_count_numbers_words_and_marks() -> None:
    assert [number.position for number in find_numbers("Well, 1,200 (or 3.5) of 7")] == [2, 5, 8]


@pytest.mark.parametrize(
    "text",
    [
        "27 boys and 4 girls are 31",
        "31 less 4 is 27",
        "12 boxes of 30: 360",
        "360 in boxes of 30 fill 12",
        "1,400 voters, 400 of them, 0.29",  # the paper's 400 / 1400
        "0.29, 400 and 1,400",
        "1400 then 0.29 then 400",
        "0.1 with 0.2 is 0.3",
        "1.5 times 1.5 is 2.25",
        "10 by 3 is 3.33",
        "2 by 3 is 0.67",
        "1 by 8 is 0.13",  # half up
        "2 and 2 is 4",
        "0 0 0",
    ],
)
def test_three_numbers_that_belong_together(text: str) -> None:
    assert has_computed_number(find_numbers(text), 100)


@pytest.mark.parametrize(
    "text",
    [
        "17 chairs, 5 tables and 250 guests",
        "7 7",
        "1 by 8 is 0.12",
        "10 by 3 is 3.3",  # rounded, but not to two decimals
        "10 by 3 is 3",
        "2001 by 1999 is 1",
        "0.1 with 0.2 is 0.31",
        "In 1987 the club had 212 members and 9 horses, in 1994 already 341 and 16.",
        "1 by 300 is 0.00",
        "0.00 is 1 by 300",
        "2 and 4",  # 2 + 2 = 4 needs the 2 twice
        "5 0",
        "",
    ],
)
def test_numbers_that_do_not(text: str) -> None:
    assert not has_computed_number(find_numbers(text), 100)


@pytest.mark.parametrize(("gap", "found"), [(97, True), (98, False)])
def test_the_window_holds_a_hundred_tokens(gap: int, found: bool) -> None:
    numbers = find_numbers("12 " + "word " * (gap // 2) + "30 " + "word " * (gap - gap // 2) + "42")
    assert has_computed_number(numbers, 100) is found


def related(a: Number, b: Number, c: Number) -> bool:
    """Whether c is a + b, a - b, a * b or a / b, said in fractions."""
    x, y, z = (Fraction(number.digits, 10**number.decimals) for number in (a, b, c))
    if z in (x + y, x - y, x * y) or (y != 0 and z == x / y):
        return True
    return y != 0 and c.decimals == 2 and z != 0 and z == Fraction((x / y * 100 + Fraction(1, 2)) // 1, 100)


NUMBERS = st.tuples(st.integers(0, 400), st.integers(0, 3), st.integers(1, 4))


@settings(max_examples=150, deadline=None)
@given(st.lists(NUMBERS, max_size=6))
def test_it_agrees_with_trying_every_triple(drawn: list[tuple[int, int, int]]) -> None:
    numbers, position = [], 0
    for digits, decimals, gap in drawn:
        position += gap
        numbers.append(Number(position, digits, decimals))
    expected = any(
        related(*triple)
        for triple in permutations(numbers, 3)
        if max(n.position for n in triple) - min(n.position for n in triple) < 8
    )
    assert has_computed_number(numbers, 8) is expected


@pytest.mark.timeout(60)
@pytest.mark.parametrize("decimals", [0, 2])
def test_a_table_of_five_thousand_numbers_takes_no_cube_of_them(decimals: int) -> None:
    draw = random.Random(0)
    table = " ".join(f"{draw.randrange(10**6, 10**9) / 10**decimals:.{decimals}f}" for _ in range(5_000))
    assert not has_computed_number(find_numbers(table), 100)


@pytest.mark.parametrize(
    "text",
    ["3 x 4 = 12", "a=5", "It EQUALS 7", "is equal to $1,200", "a total of 35", "an average of -3", "= £5"],
)
def test_a_result_is_announced(text: str) -> None:
    assert announces_result(text)


@pytest.mark.parametrize(
    "text",
    [
        "all men are created equal to each other, all 12",
        "a total of thirty-five",
        "the average of the 12",
        "he unequals 7",
        "a = b",
        "12 in total of course",
        "",
    ],
)
def test_words_that_announce_no_number(text: str) -> None:
    assert not announces_result(text)


PARTS = (
    *(
        "12",
        "1,200",
        "3.5",
        "12,34",
        "1.2.3",
        "0.00",
        "7",
        "5th",
        "B2B",
        "$",
        ",",
        ".",
        "-",
        " ",
        "\n",
        "word",
    ),
    *("=", "EQUALS", "equal\u017f", "Equal  to", "a total\nof", "average of", "Average", "\u00a0", "\u4e2d"),
)
WRITTEN = st.lists(st.sampled_from(PARTS), max_size=40).map("".join)


@given(WRITTEN)
def test_a_number_is_at_the_token_that_holds_its_first_digit(text: str) -> None:
    tokens = [match.span() for match in re.finditer(r"[0-9][0-9.,]*|[^\W\d_]+|\S", text)]
    at = 0
    for number in find_numbers(text):
        start, end = tokens[number.position]
        digits = re.sub("[.,]", "", text[start:end])
        assert str(number.digits).lstrip("0") in digits
        assert number.position >= at
        at = number.position


@given(WRITTEN, st.integers(1, 5))
def test_too_few_numbers_are_none(text: str, at_least: int) -> None:
    numbers = find_numbers(text)
    assert find_numbers(text, at_least) == (numbers if len(numbers) >= at_least else [])


@given(WRITTEN)
def test_the_search_for_words_before_the_pattern_misses_no_result(text: str) -> None:
    pattern = r"(?:=|\b(?:equals|equal\s+to|total\s+of|average\s+of)\b)\s*[-+]?\s?[$£€]?[0-9]"
    assert announces_result(text) == bool(re.search(pattern, text, re.IGNORECASE))
