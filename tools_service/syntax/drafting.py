"""Drafts an annotation prompt from what a tool says of itself and from examples (paper Appendix A).

In: a tool's name, description and parameters; texts with calls. Out: the text of a prompt file, in the form
of the files in prompt_files/: an instruction, demonstrations, a place for the text. It calls no tool, and
checks nothing: demonstrations.py, answers.py and prompts.py do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tools_service.base.printable import printable
from tools_service.contract.arguments import CallArguments
from tools_service.syntax.calls import linearise
from tools_service.syntax.demonstrations import Demonstration
from tools_service.syntax.prompts import TEXT

_MAX_DESCRIPTION = 300  # characters
_MAX_CHOICES = 8
_MAX_NAME = 40
_NO_CALL_SYNTAX = str.maketrans("[]{}", "()()")


@dataclass(frozen=True, slots=True)
class ToolDescription:
    """What a prompt says of a tool. `arguments` None: calls have one text as their input."""

    name: str
    description: str = ""
    arguments: CallArguments | None = None
    takes_input: bool = True


def draft_prompt(tool: ToolDescription, examples: Sequence[Demonstration]) -> str:
    """The prompt of `tool` with `examples` as its demonstrations."""
    call = _example_call(tool)
    instruction = [
        "Copy the text and add calls to a tool where its result helps to write what comes next.",
        f'A call looks like "{call}" and stands right before its result.',
        _plain(tool.description),
        *_described_parameters(tool),
        "Examples:",
    ]
    parts = [" ".join(filter(None, instruction))]
    parts += [f"Input: {example.text}\nOutput: {_with_calls(tool.name, example)}" for example in examples]
    return "\n\n".join([*parts, f"Input: {TEXT}\nOutput:"]) + "\n"


def _with_calls(tool: str, example: Demonstration) -> str:
    text = " " + example.text
    for call in reversed(example.calls):
        offset = call.position + 1 if call.position else 0
        text = text[:offset] + linearise(tool, call.input) + text[offset:]
    return text[1:]


def _example_call(tool: ToolDescription) -> str:
    """``[Units(amount, to)]``, with the names of the parameters."""
    names = ["text"] if tool.takes_input else []
    if tool.arguments is not None:
        names = list(map(_plain_name, _shown_parameters(tool.arguments)))
        if tool.arguments.style == "named":
            names = [f"{name}=..." for name in names]
    return f"[{tool.name}({', '.join(names)})]"


def _shown_parameters(arguments: CallArguments) -> dict[str, Any]:
    """The schemas of the parameters that a call needs, or of all if it needs none."""
    properties, required = arguments.parameters.properties, arguments.parameters.required
    return {name: schema for name, schema in properties.items() if name in required or not required}


def _described_parameters(tool: ToolDescription) -> list[str]:
    """A sentence with what the schemas say about parameters, if they do."""
    if tool.arguments is None:
        return []
    described = []
    for name, schema in _shown_parameters(tool.arguments).items():
        about = [_plain(schema.get("description", "")).rstrip(".")] if isinstance(schema, Mapping) else []
        choices = schema.get("enum", ()) if isinstance(schema, Mapping) else ()
        if 0 < len(choices) <= _MAX_CHOICES:
            about.append(f"one of {', '.join(_plain_name(str(choice)) for choice in choices)}")
        if about := list(filter(None, about)):
            described.append(f"{_plain_name(name)} is {', '.join(about)}")
    return [f"In it, {'; '.join(described)}."] if described else []


def _plain_name(name: str) -> str:
    return printable(name, _MAX_NAME).translate(_NO_CALL_SYNTAX)


def _plain(text: str) -> str:
    """The first sentences of a description, without what a prompt gives a meaning to."""
    text = printable(" ".join(str(text).split()), 2 * _MAX_DESCRIPTION).translate(_NO_CALL_SYNTAX)
    if len(text) > _MAX_DESCRIPTION:
        sentences = text[:_MAX_DESCRIPTION].rpartition(". ")[0]
        text = sentences or text[:_MAX_DESCRIPTION].rpartition(" ")[0]
    return text if not text or re.search(r"[.!?]$", text) else f"{text}."
