"""The comparison with the ground truth counts correct calls and positions, also in passages."""

from __future__ import annotations

import pytest

from bench.truth import compare
from demo.pages import MarkedPage, mark
from pipeline.base.config import MethodConfig
from pipeline.base.records import Annotation, Call, Document, Text

pytestmark = pytest.mark.unit

PAGE = MarkedPage.parse(
    "A cat slept.\nOne had 1 and 2. It has" + mark("Calculator", "1 + 2", "3") + " 3 eggs."
)
PASSAGE = PAGE.text.split("\n")[1]


def call(position: int, argument: str, gain: float) -> Call:
    return Call("Calculator", position, 0.5, argument, "3", 1.0, 1.0 + gain, 1.0 + gain, gain)


def test_calls_are_compared_with_their_page() -> None:
    [gold] = PAGE.calls
    place = gold.position - len("A cat slept.\n")
    calls = (
        call(place, "1 + 2", 0.6),  # right
        call(place, "2 + 1", 0.6),  # another call at a correct place
        call(0, "1 + 2", 0.6),  # elsewhere
        call(place, "1 + 2", 0.4),  # not kept
    )
    annotation = Annotation(Text(1, Document("a#1"), PASSAGE), "annotated", calls=calls)
    counts = compare([annotation], {PAGE.text: PAGE}, MethodConfig())
    assert {what: number for (_, what), number in counts.items()} == {"kept": 3, "place": 2, "right": 1}


def test_a_question_is_correct_if_its_answer_is() -> None:
    page = MarkedPage.parse("Ana lives in" + mark("QA", "Where does Ana live?", "Tuvale") + " Tuvale.")
    asked = [("Where is the house of Ana?", "Tuvale"), ("Where does Ana live?", "Kadale"), ("Who?", "Ana")]
    calls = tuple(
        Call("QA", page.calls[0].position, 0.5, question, result, 1.0, 3.0, 3.0, 2.0)
        for question, result in asked
    )
    annotation = Annotation(Text(1, Document("a#1"), page.text), "annotated", calls=calls)
    counts = compare([annotation], {page.text: page}, MethodConfig())
    assert {what: number for (_, what), number in counts.items()} == {"kept": 3, "place": 3, "right": 2}
