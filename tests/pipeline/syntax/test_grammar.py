"""The automaton of a tool; test_sampling.py compares it with parse_call."""

import pytest

from pipeline.syntax.grammar import CLOSED, DEAD, automaton, call_head
from tools_service.contract.declarations import PACKAGED

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("tool", PACKAGED)
def test_every_call_begins_with_the_head_of_its_tool(tool: str) -> None:
    assert (call_head(tool), call_head(tool, takes_input=False)) == (f"{tool}(", f"{tool}()")


def test_states_count_the_characters_of_the_head() -> None:
    strings = ["Q", "A(", "QA(x", ")]", "\n", "</s>"]
    table = automaton(call_head("QA"), strings, [5], 7)
    assert table.tolist() == [
        [1, DEAD, 3, DEAD, DEAD, DEAD, DEAD],
        [DEAD, 3, DEAD, DEAD, DEAD, DEAD, DEAD],
        [DEAD, DEAD, DEAD, DEAD, DEAD, DEAD, DEAD],
        [3, 3, 3, CLOSED, DEAD, DEAD, DEAD],
    ]


def test_an_arrow_may_end_a_call_in_one_token_or_in_two() -> None:
    strings = ["QA(", " -", ">", ") ->", "-", "x", ")]", "->[", "[->", "</s>"]
    with_arrow = automaton("QA(", strings, [9], 10, ends_at_arrow=True)
    without = automaton("QA(", strings, [9], 10)
    assert without[3].tolist() == [3, 3, 3, 3, 3, 3, CLOSED, DEAD, DEAD, DEAD]
    inside, after_minus = 3, 4
    assert with_arrow[inside].tolist() == [
        *(inside, after_minus, inside, CLOSED, after_minus, inside),
        *(CLOSED, CLOSED, DEAD, DEAD),
    ]
    assert with_arrow[after_minus].tolist() == [
        *(inside, after_minus, CLOSED, CLOSED, after_minus, inside),
        *(CLOSED, CLOSED, DEAD, DEAD),
    ]
    assert (with_arrow[:3] == without[:3]).all()
