"""The events of decoding as OpenAI's objects: completions, chat completions, and chunks of both.

In: events of pipeline.inference. Out: JSON objects. The calls are entries in the form of `tool_calls`, in the
field `toolformer.calls` of a choice: {id, type, function: {name, arguments}, result, reason, position}.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.inference.generation import (
    CallEvent,
    EndEvent,
    Event,
    FailureEvent,
    Generation,
    ResultEvent,
    TextEvent,
)
from pipeline.syntax.partial_call import tool_of

Json = dict[str, Any]
Arguments = Mapping[str, Callable[[str], dict[str, Any]]]
"""How the input of each tool's calls becomes arguments by name."""

_FINISH = {"length": "length", "context": "length"}


@dataclass
class Choice:
    """The answer to one prompt, as far as it has come."""

    index: int
    arguments: Arguments
    text: str = ""
    calls: dict[str, Json] = field(default_factory=dict)  # by id, in the order in which they began
    generation: Generation | None = None
    _open: list[str] = field(default_factory=list)  # calls without a result yet, the innermost last

    def add(self, event: Event) -> tuple[str, Json | None]:
        """The text and the call that `event` adds."""
        if isinstance(event, TextEvent):
            self.text += event.text
            return event.text, None
        if isinstance(event, CallEvent):
            return "", self._begin(event.tool, event.input)
        if isinstance(event, ResultEvent):
            call = event.call
            entry = self._close(call.tool) or self._begin(call.tool, call.input, pending=False)
            # The input of a chained call has the result of the inner one.
            entry["function"] = self._function(call.tool, call.input)
            return "", self._store(entry | {"result": call.result, "position": call.position})
        if isinstance(event, FailureEvent):
            failed = event.call
            tool = tool_of(failed.written, self.arguments)
            entry = self._close(tool) or self._begin(tool, None, pending=False)
            changes = {"reason": failed.reason, "written": failed.written, "position": failed.position}
            return "", self._store(entry | changes)
        if isinstance(event, EndEvent):
            self.generation = event.generation
        return "", None

    @property
    def finish_reason(self) -> str | None:
        """`length` if more tokens could have followed, else `stop`; None before the end."""
        return None if self.generation is None else _FINISH.get(self.generation.stop_reason, "stop")

    def _begin(self, tool: str | None, text: str | None, pending: bool = True) -> Json:
        call_id = f"call_{self.index}_{len(self.calls)}"
        if pending:
            self._open.append(call_id)
        function = self._function(tool, text)
        entry = {"id": call_id, "type": "function", "function": function, "result": None, "reason": None}
        return self._store(entry | {"position": None})

    def _close(self, tool: str | None) -> Json | None:
        """The innermost open call, which is the one that ends; None if it is of another tool."""
        if not self._open or self.calls[self._open[-1]]["function"]["name"] != tool:
            return None
        return self.calls[self._open.pop()]

    def _store(self, entry: Json) -> Json:
        self.calls[entry["id"]] = entry
        return entry

    def _function(self, tool: str | None, text: str | None) -> Json:
        if tool is None or text is None:  # a failed call may have no name, or no whole input
            return {"name": tool, "arguments": None}
        return {"name": tool, "arguments": json.dumps(self.arguments[tool](text), ensure_ascii=False)}


class Reply:
    """The objects that answer one request, for completions or a chat."""

    def __init__(self, model: str, prompts: int, arguments: Arguments, *, chat: bool) -> None:
        self.choices = [Choice(index, arguments) for index in range(prompts)]
        self._chat = chat
        self._fields = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self) -> Json:
        """The answer, after the last event."""
        kind = "chat.completion" if self._chat else "text_completion"
        choices = [
            self._choice(choice, choice.text, list(choice.calls.values()), whole=True)
            for choice in self.choices
        ]
        return {**self._fields, "object": kind, "choices": choices, "usage": self.usage}

    def opening(self) -> list[Json]:
        """The chunks before the first event: the role, in a chat."""
        if not self._chat:
            return []
        delta = {"role": "assistant", "content": ""}
        begin = {"delta": delta, "logprobs": None, "finish_reason": None}
        return [self._chunk([{"index": choice.index, **begin}]) for choice in self.choices]

    def chunks(self, index: int, event: Event) -> list[Json]:
        """The chunks that an event becomes."""
        choice = self.choices[index]
        text, call = choice.add(event)
        if not (text or call or isinstance(event, EndEvent)):
            return []
        return [self._chunk([self._choice(choice, text, [call] if call else [])])]

    def usage_chunk(self) -> Json:
        """The chunk with the usage, behind all others."""
        return {**self._chunk([]), "usage": self.usage}

    @property
    def usage(self) -> Json:
        """Tokens of prompts, of texts, and of all that the model chose, calls among it."""
        generations = [choice.generation for choice in self.choices if choice.generation]
        prompt_tokens = sum(generation.prompt_tokens for generation in generations)
        tokens = sum(generation.tokens for generation in generations)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": prompt_tokens + tokens,
            "sampled_tokens": sum(generation.sampled_tokens for generation in generations),
        }

    def _chunk(self, choices: Sequence[Json]) -> Json:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._fields, "object": kind, "choices": list(choices)}

    def _choice(self, choice: Choice, text: str, calls: list[Json], whole: bool = False) -> Json:
        content: Json = {"text": text}
        if self._chat and whole:
            content = {"message": {"role": "assistant", "content": text, "refusal": None}}
        elif self._chat:
            content = {"delta": {"content": text} if text else {}}
        end = {"logprobs": None, "finish_reason": choice.finish_reason}
        return {"index": choice.index, **content, **end, "toolformer": {"calls": calls}}
