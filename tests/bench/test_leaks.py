"""The counts of shared prompts, calculations and names."""

from __future__ import annotations

from typing import Any

import pytest

from bench import leaks
from demo.pages import GoldCall

pytestmark = pytest.mark.unit


def row(prompt: str, *answers: str) -> dict[str, Any]:
    return {"prompt": prompt, "answers": list(answers)}


def test_a_prompt_is_found_only_with_its_answer_and_in_one_text() -> None:
    texts = [
        leaks.one_line("It rained.\nA cat slept on the wall."),
        "Route 9 was closed for",
        "repairs. Room 3",
    ]
    rows = [row("It rained. A cat slept on the", "wall"), row("A cat slept on the", "roof")]
    assert leaks.found_with_answer(rows, texts) == ["It rained. A cat slept on the"]
    assert leaks.found_with_answer([row("Route 9 was closed for", "repairs")], texts) == []


def test_the_calculation_of_a_question_is_found_in_either_order() -> None:
    assert leaks.calculations(row("Ana has 3 cups and 4 more. That is", "7")) == [("+", "3", "4")] * 2
    assert leaks.calculations(row("Of 9 cups, Ana sold 4. Left are", "5")) == [("-", "9", "4")]


def test_shared_operands_are_not_a_shared_calculation(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("Ana has 3 cups and 4 more. That is", "7"), row("Of 9 cups, Ana sold 4. Left are", "5")]
    monkeypatch.setattr(leaks, "questions", lambda name: rows)
    calls = [GoldCall(0, "Calculator", "4 * 3", "12"), GoldCall(0, "Calculator", "9 - 4", "5")]
    assert leaks.calculator_overlap(calls) == {"calculation": 1, "operands": 2, "every number": 2}
    assert leaks.calculator_overlap(calls[:1]) == {"calculation": 0, "operands": 1, "every number": 1}


def test_a_name_counts_as_a_whole_and_its_answer_in_the_same_text() -> None:
    facts = {"Ana Kolsen": {"Tavelham"}, "Bevale": {"1208"}, "Tom Roden": {"Bevale"}}
    texts = [
        "Then Ana Kolsen left Tavelham.",
        "Bevale is old.",
        "Anna Kolsenberg and Tom Brook",
        "It is 1208.",
    ]
    assert leaks.names_in(texts, facts) == ({"Ana Kolsen", "Bevale"}, {"Ana Kolsen"})


def test_the_names_asked_about_come_with_the_answers() -> None:
    facts = leaks.asked_facts()
    assert len(facts) == 200
    prompts = {row["prompt"]: row["answers"][0] for row in leaks.questions("qa")}
    name, answer = next((name, a) for p, a in prompts.items() for name in facts if name in p)
    assert answer in facts[name]
