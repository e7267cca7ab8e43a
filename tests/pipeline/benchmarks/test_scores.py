"""Which predictions count as right on each benchmark of the paper: a table made by hand.

The rules are section 8's: the first number, or the first after an equation's sign; an answer within the
first 5, 10 or 20 words.
"""

from __future__ import annotations

import pytest

from pipeline.benchmarks.published import rules
from pipeline.evaluation.scoring import is_right, usable_answers

pytestmark = pytest.mark.unit

W, L = "word " * 5, "word " * 10

CASES: dict[str, list[tuple[str, list[str], bool]]] = {
    "svamp": [  # float answers
        (" 51 dollars.", ["51.0"], True),
        (" $51.00", ["51.0"], True),
        (" 76 - 25 = 51.", ["51.0"], True),
        (" 76 dollars, less 25, so 51", ["51.0"], False),  # the first number
        (" She has 3. So 3 + 4 = 7.", ["7.0"], True),
        (" She has 3. So 3 + 4 = 7.", ["3.0"], False),
        (" 7.5", ["7.0"], False),
        (" fifty-one", ["51.0"], False),
        (" -3", ["3.0"], False),
        ("", ["51.0"], False),
        (" 51\n\nQ: 2 + 2 = 4", ["4.0"], True),  # anywhere in the prediction
    ],
    "asdiv": [  # answers with units
        (" 9.", ["9 (apples)"], True),
        (" 9 apples", ["9 (apples)"], True),
        (" 7 + 2 = 9", ["9 (apples)"], True),
        (" nine", ["9 (apples)"], False),
        (" 1,234", ["1234 (km)"], True),
        (" 12.5", ["12.50 (dollars)"], True),
        (" 19", ["9 (apples)"], False),
        (" 9", [], False),  # words, times, fractions: no usable answer
        (" Mrs. Hilt", [], False),
    ],
    "mawps": [  # texts, floats and negative numbers
        (" 43", ["43"], True),
        (" 43 seashells", ["43.0"], True),
        (" X = 43", ["43"], True),
        (" 70 - 27 = 43 seashells", ["43"], True),
        (" 70 - 27 =", ["43"], False),  # the numbers before the sign are the question's
        (" -3", ["-3.0"], True),
        (" −3", ["-3.0"], True),
        (" 0.33", ["0.3333333333333333"], True),  # the calculator rounds to two decimals
        (" 0.3", ["0.3333333333333333"], False),
        (" 1/3", ["0.33"], False),
        (" 43", ["43", "44"], True),
    ],
    "lama_squad": [
        (" gold.", ["gold"], True),
        (" Gold", ["gold"], True),
        (" the color gold, of course", ["gold"], True),
        (f" {W}gold", ["gold"], False),
        (" one two three four gold", ["gold"], True),
        (" golden", ["gold"], False),
        (" 1990s", ["1990s"], True),
        (" the 1990", ["1990s"], False),
    ],
    "lama_google_re": [
        (" Lebanon in 1980", ["Lebanon"], True),
        ("\n\n Lebanon", ["Lebanon"], True),  # words count from the first that is not blank
        (" New York City", ["New York"], True),
        (" York, New", ["New York"], False),
        (" a town far from New York", ["New York"], False),  # its end is the sixth word
    ],
    "lama_trex": [
        (" Paris, the capital", ["Paris"], True),
        (" the 3rd of May", ["3rd of May"], True),
        (" Parisian style", ["Paris"], False),
        (" U.S.", ["US"], True),
        (" BBC One.", ["bbc one"], True),
    ],
    "templama": [
        (" Rovers until 2015", ["United", "Rovers"], True),
        (" United.", ["United", "Rovers"], True),
        (" City", ["United", "Rovers"], False),
        (" one two three four five United", ["United"], False),
    ],
    "dateset": [
        (" 690 days", ["690"], True),
        (" 1,234 days ago", ["1234"], True),
        (" It was 690 days ago.", ["690"], True),
        (" Monday", ["Monday"], True),
        (" It is a Monday.", ["Monday"], True),
        (" Mondays", ["Monday"], False),
        (" the 14th", ["14", "14th"], True),
        (" 14", ["14", "14th"], True),
        (" March 14, 2025", ["14", "14th"], True),
        (" 114", ["14", "14th"], False),
        (" It was March.", ["March"], True),
        (" on a day in the March", ["March"], False),
    ],
    "webquestions": [
        (" Jazmyn Bieber", ["Jaxon Bieber", "Jazmyn Bieber"], True),
        (" He is the brother of Jaxon Bieber.", ["Jaxon Bieber"], True),
        (f" {W * 3}word word word word Fauvism", ["Fauvism"], True),  # the 20th word
        (f" {W * 4}Fauvism", ["Fauvism"], False),
        (" Neo impressionism", ["Neo-impressionism"], True),
        (" Impressionist", ["Impressionism"], False),
    ],
    "nq": [
        (" 14 December 1972 UTC", ["December 1972"], True),
        (" in December, 1972", ["December 1972"], True),
        (" December of 1972", ["December 1972"], False),
        (" It has 54 Mbit/s", ["54\u00a0Mbit/s"], True),
        (" one season", ["one", "one season"], True),
        (" seasons", ["one", "one season"], False),
    ],
    "triviaqa": [
        (" A helicopter", ["🚁", "Helicopter"], True),
        (" 🚁", ["🚁", "Helicopter"], False),  # symbols alone can never be met
        (" B.H.", ["BH"], True),
        (" Chicago, Illinois", ["Chi-Beria", "Chicago"], True),
        (" I think it's Sunset Boulevard", ["Sunset Boulevard"], True),
        (" Sunset", ["Sunset Boulevard"], False),
    ],
    "mlqa_de": [
        (" 308 points", ["308"], True),
        (" The Panthers defense gave up just 308 points.", ["308"], True),
        (f" {L}308", ["308"], False),
        (f" {W}one two three four 308", ["308"], True),  # the 10th word
        (" 3080", ["308"], False),
    ],
    "xquad_zh": [
        (" Kawann Short", ["Kawann Short"], True),
        (" kawann short!", ["Kawann Short"], True),
        (" Short", ["Kawann Short"], False),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "prediction", "answers", "right"),
    [(name, *case) for name, cases in CASES.items() for case in cases],
)
def test_a_prediction_on_a_benchmark(name: str, prediction: str, answers: list[str], right: bool) -> None:
    assert is_right(rules()[name].scoring, prediction, answers) is right


def test_the_table_is_large_enough() -> None:
    assert sum(map(len, CASES.values())) >= 80
    assert all(len(cases) >= 3 for cases in CASES.values())
    assert {rules()[name].scoring for name in CASES} == {row.scoring for row in rules().values()}


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("lama_squad", "one two three four five six"),
        ("mlqa_de", L + "word"),
        ("nq", "word " * 21),
        ("triviaqa", "🚁"),
        ("triviaqa", "?!"),
        ("webquestions", ""),
        ("asdiv", "Mrs. Hilt"),
        ("svamp", "many"),
    ],
)
def test_an_answer_that_can_never_be_met_is_left_out(name: str, answer: str) -> None:
    scoring = rules()[name].scoring
    assert usable_answers(scoring, [answer, "35"]) == ("35",)
    assert not is_right(scoring, answer, [answer])
