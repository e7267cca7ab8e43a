"""What decoding a prompt gives: its `Generation`, and the events on the way to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.inference.call_parser import CompletedCall, FailedCall
from tools_service.base.errors import ToolformerError
from tools_service.syntax.calls import linearise

StopReason = Literal["eos", "newline", "stop", "length", "context", "refused", "cancelled"]


class InferenceError(ToolformerError):
    """Decoding cannot go on; the message says where and why."""


class PromptError(InferenceError):
    """A prompt that cannot be continued. `reason` is too_long, empty or not_text."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[PromptError], tuple[str, str]]:
        return PromptError, (self.reason, str(self))


@dataclass(frozen=True, slots=True)
class Generation:
    """The continuation of a prompt: `text` without calls, `tokens` tokens long, and the calls.

    A prompt that cannot be continued has the reason in `refused`, and no text.
    """

    text: str
    calls: tuple[CompletedCall, ...]
    failed: tuple[FailedCall, ...]
    stop_reason: StopReason
    tokens: int
    refused: PromptError | None = None
    prompt_tokens: int = 0
    sampled_tokens: int = 0
    """All tokens that the model chose: the text, calls up to their arrow, and what was rolled back."""

    @property
    def annotated(self) -> str:
        """The text with its calls and their results."""
        text = self.text
        for call in reversed(self.calls):
            written = linearise(call.tool, call.input, call.result)
            text = text[: call.position] + written + text[call.position :]
        return text


@dataclass(frozen=True, slots=True)
class TextEvent:
    """More text, outside of calls. The texts of all events together are the generation's text."""

    text: str


@dataclass(frozen=True, slots=True)
class BeginEvent:
    """<API> is among the k most likely tokens, and a call begins."""

    position: int  # characters of the text before it
    rank: int  # of <API>, from 1


@dataclass(frozen=True, slots=True)
class CallEvent:
    """A call has reached its arrow, and the tool is asked."""

    tool: str
    input: str


@dataclass(frozen=True, slots=True)
class ResultEvent:
    """The tool has answered, and the result is in the text."""

    call: CompletedCall


@dataclass(frozen=True, slots=True)
class FailureEvent:
    """A call was rolled back."""

    call: FailedCall


@dataclass(frozen=True, slots=True)
class EndEvent:
    """The last event of a prompt."""

    generation: Generation


Event = TextEvent | BeginEvent | CallEvent | ResultEvent | FailureEvent | EndEvent
