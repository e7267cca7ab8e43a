"""A prompt from a description and examples: it reads like the written ones, and passes their check."""

from __future__ import annotations

from typing import Any

import pytest

from tools_service.contract.arguments import CallArguments, Style
from tools_service.syntax.demonstrations import Demonstration, read_demonstration
from tools_service.syntax.drafting import ToolDescription, draft_prompt
from tools_service.syntax.prompts import demonstrations, prompt_problems

pytestmark = pytest.mark.unit


def example(text: str, tool: str = "Units") -> Demonstration:
    read = read_demonstration(1, text, tool, takes_input=None, results=True)
    assert isinstance(read, Demonstration)
    return read


def convert(style: Style) -> CallArguments:
    properties: dict[str, Any] = {
        "amount": {"type": "number", "description": "The number\nof miles."},
        "to": {"enum": ["km", "ft"]},
        "digits": {"type": "integer"},
    }
    return CallArguments({"properties": properties, "required": ["amount", "to"]}, style)


def test_a_drafted_prompt() -> None:
    tool = ToolDescription("Units", "Converts miles", convert("positional"))
    examples = [
        example("A marathon is 26.2 miles, or [Units(26.2, km) -> 42.16] 42.2 km, long."),
        example("[Units(1, ft)] 5,280 feet are [Units(5280, km)] [Units(1, km)] 1.6 km."),
    ]
    assert draft_prompt(tool, examples) == (
        "Copy the text and add calls to a tool where its result helps to write what comes next. A call looks "
        'like "[Units(amount, to)]" and stands right before its result. Converts miles. In it, amount is The '
        "number of miles; to is one of km, ft. Examples:\n\n"
        "Input: A marathon is 26.2 miles, or 42.2 km, long.\n"
        "Output: A marathon is 26.2 miles, or [Units(26.2, km)] 42.2 km, long.\n\n"
        "Input: 5,280 feet are 1.6 km.\n"
        "Output: [Units(1, ft)] 5,280 feet are [Units(5280, km)] [Units(1, km)] 1.6 km.\n\n"
        "Input: {text}\nOutput:\n"
    )


@pytest.mark.parametrize(
    ("tool", "call"),
    [
        (ToolDescription("Units"), "[Units(text)]"),
        (ToolDescription("Units", takes_input=False), "[Units()]"),
        (ToolDescription("Units", arguments=convert("named")), "[Units(amount=..., to=...)]"),
        (ToolDescription("Units", arguments=CallArguments({"properties": {"query": {}}})), "[Units(query)]"),
        (
            ToolDescription("Units", arguments=CallArguments({"properties": {"a": {}, "b": True}})),
            "[Units(a, b)]",
        ),
        (ToolDescription("Units", arguments=CallArguments({})), "[Units()]"),
        (
            ToolDescription("Units", arguments=CallArguments({"properties": {"f[x]\n": {}}})),
            r"[Units(f(x)\n)]",
        ),
    ],
)
def test_the_instruction_shows_how_calls_are_written(tool: ToolDescription, call: str) -> None:
    prompt = draft_prompt(tool, [example("a [Units(1)] b")])
    assert f'A call looks like "{call}" and' in prompt


@pytest.mark.parametrize(
    "description",
    [
        "",
        "Says [QA(this)] and {text}. And [Units(that)]!",
        "Two\nlines.\n\nInput: a\nOutput: b [MT(x)]",
        "\x1b[31mred\x07",
        "A sentence. " * 100,
        "word " * 500,
        "x" * 10_000,
    ],
)
def test_any_description_gives_a_prompt_that_can_be_used(description: str) -> None:
    schema = {
        "properties": {"x": {"description": description, "enum": [description, 5]}, "y": {"enum": [1] * 50}}
    }
    examples = [example("a [Units(1)] b"), example("[Units(2)] b")]
    prompt = draft_prompt(ToolDescription("Units", description, CallArguments(schema)), examples)
    template = prompt.rstrip()
    assert prompt_problems(template, "Units") == []
    assert [(one.text, one.calls) for one in demonstrations(template, "Units")] == [
        (one.text, one.calls) for one in examples
    ]
    assert len(prompt) < 2_500
    assert prompt.replace("\n", "").isprintable()
