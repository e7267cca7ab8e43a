"""A call stands in front of its result: recognised exactly, rounded, in words, or not at all."""

from __future__ import annotations

import pytest

from tools_service.contract.tool import ToolResult
from tools_service.syntax.answers import answer_problems
from tools_service.syntax.demonstrations import Demonstration, read_demonstration

pytestmark = pytest.mark.unit


def problems(text: str, *answers: str, in_text: bool = True) -> list[str]:
    demonstration = read_demonstration(1, text, "T", takes_input=None, results=True)
    assert isinstance(demonstration, Demonstration)
    results = [ToolResult(answer) for answer in answers]
    return [str(problem) for problem in answer_problems(demonstration, "T", results, in_text=in_text)]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Both days [T(48 + 67)] 115 rolls.", "115"),
        ("It is [T(26.2 mi)] 42.2 km long.", "42.1648"),
        ("It is [T(26.2 mi)] 42 km long.", "42.1648"),
        ("It is [T(10 mi)] 52,800 feet.", "52800"),
        ("A share of [T(400 / 1400)] 29% voted.", "0.29"),
        ("A share of [T(400 / 1400)] 28.6 % voted.", "0.285714"),
        ("It fell by [T(2 - 5)] -3 degrees.", "-3"),
        ("Born in [T(Where was she born?)] Warsaw.", "Warsaw"),
        ("Born in [T(Where was she born?)] warsaw, Poland.", "Warsaw"),
        (
            "It fell in [T(end of the lighthouse)] an earthquake.",
            "Lighthouse > It fell in 1303 (earthquake).",
        ),
        ("They say [T(pain)] bread for it.", "bread"),
        ("今日は [T(x)] 東京です", "東京"),
    ],
)
def test_results_are_recognised_behind_the_call(text: str, answer: str) -> None:
    assert problems(text, answer) == []


@pytest.mark.parametrize(
    ("text", "answer", "message"),
    [
        (
            "It is 52,800 feet [T(10 mi)] long.",
            "52800",
            "line 1: T(10 mi) stands after its result, '52800'; write",
        ),
        (
            "Warsaw is where she was born [T(where?)].",
            "Warsaw",
            "T(where?) stands after its result, 'Warsaw'",
        ),
        ("About 42 km, [T(26.2 mi)] a long run.", "42.1648", "stands after its result"),
        ("42.2 km [T(26.2 mi)]", "42.1648", "stands after its result"),
    ],
)
def test_a_call_behind_its_result_is_wrong(text: str, answer: str, message: str) -> None:
    [problem] = problems(text, answer)
    assert message in problem
    assert "note" not in problem


@pytest.mark.parametrize(
    ("text", "answer", "message"),
    [
        (
            "It is [T(26.2 mi)] 43 km long.",
            "42.1648",
            "the text after T(26.2 mi) has nothing of its result, '42.1648'",
        ),
        ("It is [T(5 mi)] 5 mi long.", "5.01", "has nothing of its result"),
        ("Only [T(1 / 3)] 0 left.", "0.3", "has nothing of its result"),
        ("It is [T(3 kilometres)] some kilometres.", "two kilometres", "has nothing of its result"),
        ("It is [T(x)] 1,234 long.", "234", "has nothing of its result"),
        ("It is [T(x)] the cat.", "the dog", "has nothing of its result"),
        (
            "At 12 there were [T(3 * 4)] 12 of us.",
            "12",
            "the result of T(3 * 4), '12', stands before the call, too",
        ),
        ("It is [T(1 mi) -> 1.6 km] 1.61 km.", "1.61 km", "T(1 mi) gives '1.61 km', not '1.6 km'"),
    ],
)
def test_what_looks_odd_is_a_note(text: str, answer: str, message: str) -> None:
    [problem] = problems(text, answer)
    assert problem.startswith("line 1: note: ")
    assert message in problem


def test_a_stated_result_that_the_tool_gives_is_right() -> None:
    assert problems("It is [T(1 mi) -> 1.61  km] 1.61 km.", "1.61 km") == []


def test_each_call_has_its_own_answer() -> None:
    found = problems("One [T(a)] 1 and two [T(b)] 2, so [T(c)] 4.", "1", "2", "3")
    assert found == ["line 1: note: the text after T(c) has nothing of its result, '3'; is that right?"]


def test_no_result_is_wrong() -> None:
    demonstration = read_demonstration(4, "It is [T(x)] 1.", "T")
    assert isinstance(demonstration, Demonstration)
    [problem] = answer_problems(demonstration, "T", [ToolResult(reason="not a number: amount")])
    assert str(problem) == "line 4: T(x) has no result: not a number: amount"


def test_results_of_another_date_are_not_looked_for() -> None:
    assert problems("It is [T()] Thursday.", "Today is Monday, January 30, 2023.", in_text=False) == []


def test_long_and_odd_results_are_cut() -> None:
    [problem] = problems(f"It is [T({'x' * 500})] 1.", "\x1b[31m" + "y" * 10_000)
    assert len(problem) < 400
    assert problem.isprintable()
