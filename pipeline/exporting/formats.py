"""The rows of each format: a text of C* as text, segments, chat messages, or ShareGPT turns.

In: a text and its parts (augmented_text.py). Out: a row, with one Arrow schema per format. A text has no
user: an instruction, the same for all texts, stands in for one, because most chat templates and
LLaMA-Factory need a user turn. What the assistant says in all of its turns, put together, is x.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.base.config import ExportConfig
from pipeline.exporting.augmented_text import WrittenCall
from tools_service.contract.schemas import arguments_of, function_schema
from tools_service.contract.spec import ToolSpec
from tools_service.syntax.calls import linearise, split_result

Part = str | WrittenCall
Row = dict[str, Any]

_FUNCTION = pa.struct({"name": pa.string(), "arguments": pa.string()})
_CALL = pa.struct({"id": pa.string(), "type": pa.string(), "function": _FUNCTION})
_MESSAGE = pa.struct(
    {
        "role": pa.string(),
        "content": pa.string(),
        "tool_calls": pa.list_(_CALL),
        "tool_call_id": pa.string(),
        "name": pa.string(),
    }
)
_LISTED_FUNCTION = pa.struct({"name": pa.string(), "description": pa.string(), "parameters": pa.string()})
_LISTED_TOOLS = pa.list_(pa.struct({"type": pa.string(), "function": _LISTED_FUNCTION}))
_TEXT_ID = ("text_id", pa.int64())


@dataclass(frozen=True)
class Format:
    """What a format's rows hold, and how one is made from a text's id and parts."""

    schema: pa.Schema
    row: Callable[[int, Sequence[Part]], Row]


def format_of(config: ExportConfig, specs: Mapping[str, ToolSpec]) -> Format:
    """The format that `config` asks for; `specs` are the tools of C*, with their schemas."""
    if config.format == "text":
        if config.mask_results:
            segment = pa.struct({"text": pa.string(), "label": pa.bool_()})
            return Format(pa.schema([_TEXT_ID, ("segments", pa.list_(segment))]), _segments_row)
        return Format(pa.schema([_TEXT_ID, ("text", pa.string())]), _text_row)
    arguments = {name: arguments_of(spec) for name, spec in specs.items()}
    schemas = [function_schema(spec) for spec in specs.values()]
    tools: Any = _json([schema["function"] for schema in schemas] if config.format == "sharegpt" else schemas)
    tools_type = pa.string()
    if config.tools_as == "list":
        tools_type = _LISTED_TOOLS
        tools = [
            {
                **schema,
                "function": {**schema["function"], "parameters": _json(schema["function"]["parameters"])},
            }
            for schema in schemas
        ]
    name, converted, item_type = (
        ("messages", _messages, _MESSAGE)
        if config.format == "chat"
        else ("conversations", _conversations, pa.struct({"from": pa.string(), "value": pa.string()}))
    )

    def row(text_id: int, parts: Sequence[Part]) -> Row:
        return {"text_id": text_id, name: converted(parts, config, arguments), "tools": tools}

    return Format(pa.schema([_TEXT_ID, (name, pa.list_(item_type)), ("tools", tools_type)]), row)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _text_row(text_id: int, parts: Sequence[Part]) -> Row:
    return {"text_id": text_id, "text": "".join(segment["text"] for segment in _segments(parts))}


def _segments_row(text_id: int, parts: Sequence[Part]) -> Row:
    return {"text_id": text_id, "segments": _segments(parts)}


def _segments(parts: Sequence[Part]) -> list[Row]:
    """x* in segments. `label` is false for what the tool writes: the result and the bracket after it."""
    segments: list[Row] = []

    def add(text: str, label: bool) -> None:
        if segments and segments[-1]["label"] is label:
            segments[-1]["text"] += text
        else:
            segments.append({"text": text, "label": label})

    for part in parts:
        if isinstance(part, str):
            add(part, True)
        else:
            call, result = split_result(linearise(part.tool, part.input, part.result))
            add(call, True)
            add(result, False)
    segments[0]["text"] = segments[0]["text"].removeprefix(" ")  # parts_of has x* with a space before it
    return segments


def _said_with_calls(parts: Sequence[Part]) -> list[tuple[str, WrittenCall | None]]:
    """What the assistant says before each call, with the call; the last one has none."""
    spoken: list[tuple[str, WrittenCall | None]] = []
    said, begun = "", False
    for part in parts:
        if isinstance(part, str):
            said += part if begun else part.removeprefix(" ")
            begun = True
        else:
            spoken.append((said, part))
            said = ""
    return [*spoken, (said, None)]


Arguments = Mapping[str, Callable[[str], dict[str, Any]]]


def _messages(parts: Sequence[Part], config: ExportConfig, arguments: Arguments) -> list[Row]:
    """Messages in the form of OpenAI's API. Ids have nine characters, which Mistral's templates need."""
    messages: list[Row] = []
    if config.instruction is not None:
        messages.append({"role": "user", "content": config.instruction})
    for number, (said, call) in enumerate(_said_with_calls(parts)):
        message: Row = {"role": "assistant", "content": said}
        messages.append(message)
        if call is None:
            continue
        call_id = f"{number:09d}"
        function = {"name": call.tool, "arguments": _json(arguments[call.tool](call.input))}
        message["tool_calls"] = [{"id": call_id, "type": "function", "function": function}]
        result = {"role": "tool", "tool_call_id": call_id, "name": call.tool, "content": call.result}
        messages.append(result)
    return messages


def _conversations(parts: Sequence[Part], config: ExportConfig, arguments: Arguments) -> list[Row]:
    """Turns as LLaMA-Factory reads them: human or observation, then gpt or function_call, and so on."""
    conversation: list[Row] = [{"from": "human", "value": config.instruction or config.continuation}]
    for said, call in _said_with_calls(parts):
        if said or call is None:
            conversation.append({"from": "gpt", "value": said})
        if call is None:
            continue
        if conversation[-1]["from"] == "gpt":
            conversation.append({"from": "human", "value": config.continuation})
        written = {"name": call.tool, "arguments": arguments[call.tool](call.input)}
        conversation.append({"from": "function_call", "value": _json(written)})
        conversation.append({"from": "observation", "value": call.result})
    return conversation
