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
