"""Lenient scores: which predictions count as right."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.scoring import (
    ScoringError,
    check_scoring,
    first_number,
    is_right,
    normalise,
    predicted_number,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" 35.", "35"),
        ("$35", "35"),
        ("-$35.50 less", "-35.50"),
        ("$-4", "-4"),
        ("1,234,567.89 people", "1234567.89"),
        ("1,2345", "1"),
        ("about .5 of it", "0.5"),
        ("-7 degrees", "-7"),
        ("− 7 is written with a space, so 7", "7"),
        ("−7 with a typographic minus", "-7"),
        ("5-3", "5"),
        ("x-3", "3"),
        ("35th of B2B", "35"),
        ("vitamin B12 and 4 more", "4"),
        ("20%", "20"),
        ("3.", "3"),
        ("[1] 2", "1"),
    ],
)
def test_first_number(text: str, number: str) -> None:
    assert first_number(text) == Decimal(number)


def test_a_text_without_a_number_predicts_none() -> None:
    assert first_number("thirty five, B2B") is None
    assert predicted_number("thirty five") is None


@given(st.decimals(-(10**9), 10**9, places=2), st.sampled_from(["{:,}", "{}", "${:,}.", "It is {}, yes."]))
def test_any_number_is_read_back_from_a_sentence(number: Decimal, frame: str) -> None:
    assert first_number(frame.format(number)) == number


@pytest.mark.parametrize(
    ("prediction", "number"),
    [
        (" 5 + 3 = 8.", "8"),
        (" The correct answer is 5+3=8", "8"),
        (" 5 apples and 3 apples = $1,008 apples", "1008"),
        (" 8. Check: 5 + 4 = 9.", "8"),
        (" 8 dollars\n5 + 4 = 9", "8"),
        (" No. 2 * 3 = -6.", "-6"),
        (" 7 (because 3 + 4 = 7)", "7"),
        (" 10 - 2 - 3 = 5 = 5", "5"),
        (" 3.5 hours = 210 minutes", "210"),
    ],
)
def test_an_equation_is_read_after_its_sign(prediction: str, number: str) -> None:
    assert predicted_number(prediction) == Decimal(number)


def test_an_unfinished_equation_predicts_nothing() -> None:
    assert predicted_number(" 5 + 3 =") is None
    assert not is_right("number", " 5 + 3 = ?", ["5"])


def test_numbers_are_compared_by_value_at_the_precision_of_the_calculator() -> None:
    assert is_right("number", " 35.0 dollars", ["$35"])
    assert is_right("number", " 0.33", ["0.3333"])
    assert is_right("number", " 2.68", ["2.675"])
    assert not is_right("number", " 0.3", ["0.3333"])
    assert not is_right("number", " 3", ["33", "13"])
    assert is_right("number", " 13", ["33", "13"])


@pytest.mark.parametrize(
    ("scoring", "prediction", "answers", "right"),
    [
        ("first_words:5", " in the city of PARIS, France", ["Paris"], True),
        ("first_words:4", " in the city of Paris", ["Paris"], False),
        ("first_words:5", " the Parisian town", ["Paris"], False),
        ("first_words:5", " New   York.", ["new york"], True),
        ("first_words:1", " New York.", ["New York", "New"], True),
        ("first_words:5", " York New", ["New York"], False),
        ("first_words:5", " the U.S.", ["US"], True),
        ("first_words:5", " 1,234 km", ["1234"], True),
        ("first_words:5", " version 3.5.", ["3.5"], True),
        ("first_words:5", " version 3.5.", ["3"], False),
        ("first_words:5", " Ça va, façade", ["FAÇADE"], True),
        ("first_words:5", "", ["Paris"], False),
        ("first_words:5", " वाराणसी में", ["वाराणसी"], True),
    ],
)
def test_an_answer_counts_within_the_first_words(
    scoring: str, prediction: str, answers: list[str], right: bool
) -> None:
    assert is_right(scoring, prediction, answers) is right


def test_normalise_leaves_words_and_numbers() -> None:
    assert normalise("It's “well-known”: U.K., 1,234.5 — ½!") == [
        "its",
        "well",
        "known",
        "uk",
        "1234.5",
        "1",
        "2",
    ]


@pytest.mark.parametrize(
    "scoring", ["numbers", "first_words", "first_words:0", "first_words:-1", "first_words:٣"]
)
def test_an_unknown_scoring_is_refused(scoring: str) -> None:
    with pytest.raises(ScoringError, match="unknown scoring"):
        is_right(scoring, "1", ["1"])


def test_an_answer_that_can_never_be_given_is_refused() -> None:
    check_scoring("number", ["35"])
    check_scoring("first_words:2", ["New York"])
    for scoring, answer in [("number", "many"), ("first_words:1", "New York"), ("first_words:5", "?!")]:
        with pytest.raises(ScoringError, match="answer"):
            check_scoring(scoring, [answer])
