"""Where calls stand: each has one place, and the list of places is complete."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.records import Call
from pipeline.report.html.placements import PLACES, Placements, place_of
from pipeline.report.html.scored_calls import mergeable_calls
from tests.pipeline.augmentation.test_merge import annotated
from tests.pipeline.report.html.test_scored_calls import batch

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("before", "after", "place"),
    [
        ("", "The nurse", "at the start"),
        ("  ", "The nurse", "at the start"),
        ("all there is.", "", "at the end"),
        ("all there is.", " \n", "at the end"),
        ("12", "34 people", "inside a number"),
        ("1", ",234 people", "inside a number"),
        ("1,", "234 people", "inside a number"),
        ("3", ".5", "inside a number"),
        ("nur", "se", "inside a word"),
        ("don", "'t", "inside a word"),
        ("well-", "known", "inside a word"),
        ("A", "4 paper", "inside a word"),
        ("2 + 2 =", " 4", "after ="),
        ("2 + 2 = ", "four", "after ="),
        ("there are", " 40 of them", "before a number"),
        ("it costs", " $5", "before a number"),
        ("it fell to", " -5", "before a number"),
        ("patients", ", of whom", "before punctuation"),
        ("in 1998", ".", "before punctuation"),
        ("he asked", " — why", "before punctuation"),
        ("the", " nurse", "between words"),
        ("he said", ' "no"', "between words"),
        ("it was", " (then) new", "between words"),
        ("東京", "都", "between words"),
        ("x" * 90 + " ", "y" * 90, "between words"),
    ],
)
def test_the_place_is_that_of_the_characters_around(before: str, after: str, place: str) -> None:
    assert place_of(before + after, len(before)) == place


@given(st.text(max_size=12), st.integers(0, 12))
def test_every_position_has_a_place(text: str, position: int) -> None:
    assert place_of(text, min(position, len(text))) in PLACES


def test_only_kept_calls_count_and_each_counts_once() -> None:
    def call(tool: str, position: int, gain: float) -> Call:
        return Call(tool, position, 0.5, "a", "b", 1.0, 2.0, 9.0, gain)

    text = "ten chars!"
    rows = batch(
        [
            annotated(1, text, call("QA", 0, 1.0), call("QA", 3, 0.9), call("MT", 10, 0.5)),
            annotated(2, text, call("QA", 9, 2.0), call("QA", 10, 2.0)),
        ]
    )
    tools = ["QA", "MT"]
    placements = Placements(tools, {"QA": 1.0, "MT": 0.5})
    placements.add(rows, mergeable_calls(rows, tools, ()))
    qa, mt = placements.placements()
    assert qa.in_text.counts == (1, 0, 0, 0, 0, 0, 0, 0, 0, 2)
    assert len(qa.in_text.edges) == 11
    assert qa.places == {"at the start": 1, "at the end": 1, "before punctuation": 1}
    assert (mt.tool, sum(mt.in_text.counts), mt.places) == ("MT", 1, {"at the end": 1})
