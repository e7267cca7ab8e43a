"""A generation on a terminal: text in colour as it comes, calls when they are asked, results, failures.

In: events. Out: the text on a rich console, which writes no colour under NO_COLOR. A call stands where
`Generation.annotated` has it. Words say what colours say. Texts of the model and of tools are strangers'
strings: control characters come out escaped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from operator import attrgetter

from rich.console import Console
from rich.text import Text as Styled

from pipeline.cli.generating.decoding_trace import failure
from pipeline.inference.call_parser import CompletedCall, FailedCall
from pipeline.inference.generation import (
    BeginEvent,
    CallEvent,
    EndEvent,
    Event,
    FailureEvent,
    Generation,
    ResultEvent,
    TextEvent,
)
from pipeline.syntax.partial_call import ARROW_HEAD
from tools_service.base.printable import printable
from tools_service.syntax.calls import API, ARROW, END

_TEXT = "cyan"
_CALL = "dim"
_RESULT = "green"
_FAILURE = "red"


class AnswerView:
    """Shows the events of one prompt."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = 0  # characters of the text
        self._position = 0  # of the last call
        self._is_asked = False
        # Calls at a place that the text has not reached: text that may begin a stop string comes later.
        self._waiting: deque[tuple[int, Styled]] = deque()

    def prompt(self, prompt: str) -> None:
        """Show what is continued."""
        self._print(Styled(_visible(prompt)))

    def add(self, event: Event) -> None:
        """Show an event."""
        match event:
            case TextEvent(text):
                self._add_text(text)
            case BeginEvent(position):
                self._position = position
            case CallEvent(tool, argument):
                self._insert(f"{API}{tool}({argument}){ARROW}", _CALL)
                self._is_asked = True
            case ResultEvent(call):
                self._insert(call.result, _RESULT)
                self._insert(END, _CALL)
                self._is_asked = False
            case FailureEvent(call):
                if not self._is_asked:
                    self._position = call.position
                    self._insert(f"{API}{call.written.removesuffix(ARROW_HEAD).rstrip(' ')}{ARROW}", _CALL)
                self._insert(f"failed: {failure(call.reason)}", _FAILURE)
                self._insert(END, _CALL)
                self._is_asked = False
            case EndEvent():
                self.end()

    def end(self) -> None:
        """End the line."""
        for _, piece in self._waiting:
            self._print(piece)
        self._waiting.clear()
        self._console.print()

    def _add_text(self, text: str) -> None:
        while self._waiting and self._waiting[0][0] <= self._shown + len(text):
            position, piece = self._waiting.popleft()
            before = max(position - self._shown, 0)
            self._print_text(text[:before])
            self._print(piece)
            text = text[before:]
        self._print_text(text)

    def _insert(self, written: str, style: str) -> None:
        piece = Styled(_visible(written, line_breaks=False), style)
        if self._waiting or self._position > self._shown:
            self._waiting.append((self._position, piece))
        else:
            self._print(piece)

    def _print_text(self, text: str) -> None:
        self._shown += len(text)
        self._print(Styled(_visible(text), _TEXT))

    def _print(self, piece: Styled) -> None:
        self._console.print(piece, end="", soft_wrap=True, highlight=False)
        self._console.file.flush()


def events_of(generation: Generation) -> Iterator[Event]:
    """The events of a generation that has ended, for an AnswerView."""
    shown = 0
    # A call that failed at the place of another one comes first: it may have been chained.
    calls: list[FailedCall | CompletedCall] = [*generation.failed, *generation.calls]
    for call in sorted(calls, key=attrgetter("position")):
        yield TextEvent(generation.text[shown : call.position])
        shown = max(shown, call.position)
        if isinstance(call, CompletedCall):
            yield BeginEvent(call.position, 0)
            yield CallEvent(call.tool, call.input)
            yield ResultEvent(call)
        else:
            yield FailureEvent(call)
    yield TextEvent(generation.text[shown:])
    yield EndEvent(generation)


def _visible(text: str, *, line_breaks: bool = True) -> str:
    lines = text.split("\n") if line_breaks else [text]
    return "\n".join(printable(line, len(line)) for line in lines)
