"""`answer` holds any tool to the contract: as many results as inputs, and a failure costs only its own
input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tools_service.contract.tool import MALFORMED_ANSWER, TOOL_FAILED, ToolInput, ToolResult, answer

pytestmark = pytest.mark.unit

INPUTS = [ToolInput("a"), ToolInput("b"), ToolInput("c")]


class Scripted:
    """A tool that does what it was given."""

    name = "Scripted"

    def __init__(self, does: Callable[[Sequence[ToolInput]], Any]) -> None:
        self.does = does

    def __call__(self, inputs: Sequence[ToolInput]) -> Any:
        return self.does(inputs)


def echo(inputs: Sequence[ToolInput]) -> list[ToolResult]:
    return [ToolResult(one.text) for one in inputs]


def test_a_good_answer_passes_through() -> None:
    assert answer(Scripted(echo), INPUTS) == echo(INPUTS)
    assert answer(Scripted(echo), []) == []


def test_a_tool_needs_no_name(caplog: pytest.LogCaptureFixture) -> None:
    class Nameless:
        def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
            raise SystemExit("no key")

    assert answer(Nameless(), INPUTS) == [ToolResult(reason=TOOL_FAILED)] * 3
    assert "Nameless failed on 'a': SystemExit: no key" in caplog.text


def test_an_exception_costs_its_own_input_only(caplog: pytest.LogCaptureFixture) -> None:
    def fails_on_b(inputs: Sequence[ToolInput]) -> list[ToolResult]:
        if any(one.text == "b" for one in inputs):
            raise ZeroDivisionError
        return echo(inputs)

    assert answer(Scripted(fails_on_b), INPUTS) == [
        ToolResult("a"),
        ToolResult(reason=TOOL_FAILED),
        ToolResult("c"),
    ]
    assert caplog.messages == [
        "Scripted failed on 3 calls; each is tried alone",
        "Scripted failed on 'b': ZeroDivisionError: ",
    ]


@pytest.mark.parametrize(
    "garbage",
    [
        None,
        "abc",
        42,
        [],
        [ToolResult("a")] * 4,
        ["a", "b", "c"],
        [ToolResult("a"), None, ToolResult("c")],
        [ToolResult("a"), ToolResult(), ToolResult("c")],
        [ToolResult("a"), ToolResult(7), ToolResult("c")],  # type: ignore[arg-type]
    ],
)
def test_garbage_becomes_a_reason(garbage: Any) -> None:
    assert answer(Scripted(lambda _: garbage), INPUTS) == [ToolResult(reason=MALFORMED_ANSWER)] * 3
