"""What a terminal shows of a generation."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pytest
from rich.console import Console

from pipeline.cli.generating.answer_view import AnswerView, events_of
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

pytestmark = pytest.mark.unit

CALL = CompletedCall("QA", "Who?", "Ada", 4)
GENERATION = Generation(" She is.", (CALL,), (), "eos", 3)


def shown(events: Iterable[Event], color: str | None = None) -> str:
    file = io.StringIO()
    view = AnswerView(
        Console(file=file, force_terminal=color is not None, width=20, _environ={"TERM": color or ""})
    )
    for event in events:
        view.add(event)
    return file.getvalue()


def test_a_call_is_shown_when_it_is_asked_and_its_result_when_it_comes() -> None:
    events = [TextEvent(" She"), BeginEvent(4, 1), CallEvent("QA", "Who?")]
    assert shown(events) == " She [QA(Who?) -> "
    events += [ResultEvent(CALL), TextEvent(" is."), EndEvent(GENERATION)]
    assert shown(events) == GENERATION.annotated + "\n"


def test_text_call_and_result_differ_in_style() -> None:
    styled = shown(events_of(GENERATION), color="xterm-256color")
    assert (
        styled
        == "".join(
            f"\x1b[{code}m{text}\x1b[0m"
            for code, text in [(36, " She"), (2, " [QA(Who?) -> "), (32, "Ada"), (2, "]"), (36, " is.")]
        )
        + "\n"
    )


def test_a_call_waits_for_text_that_may_begin_a_stop_string() -> None:
    events = [TextEvent(" S"), BeginEvent(4, 1), CallEvent("QA", "Who?")]
    assert shown(events) == " S"
    events += [ResultEvent(CALL), TextEvent("he i"), TextEvent("s."), EndEvent(GENERATION)]
    assert shown(events) == GENERATION.annotated + "\n"
    cut = Generation(" Sh", (CALL,), (), "stop", 3)
    assert shown([*events[:4], TextEvent("h"), EndEvent(cut)]) == cut.annotated + "\n"


@pytest.mark.parametrize(
    ("events", "text"),
    [
        (
            [FailureEvent(FailedCall("QA(Wh\n", "newline", 0))],
            r" [QA(Wh\n -> failed: its input has a line break]",
        ),
        (
            [CallEvent("QA", "Who?"), FailureEvent(FailedCall("QA(Who?) ->", "no_answer", 0))],
            " [QA(Who?) -> failed: no result from the tool: no_answer]",
        ),
    ],
)
def test_a_failed_call_is_shown_in_its_place_with_the_reason(events: list[Event], text: str) -> None:
    failed = events[-1].call  # type: ignore[union-attr]
    generation = Generation(" so.", (), (failed,), "eos", 2)  # type: ignore[arg-type]
    live = shown([BeginEvent(0, 3), *events, TextEvent(" so."), EndEvent(generation)])
    assert live == shown(events_of(generation)) == text + " so.\n"


def test_several_calls_at_their_places_as_the_annotated_text_has_them() -> None:
    calls = (
        CompletedCall("QA", "a", "b", 0),
        CompletedCall("QA", "b", "c", 0),
        CompletedCall("MT", "d", "e", 3),
    )
    generation = Generation(" so.", calls, (), "eos", 2)
    assert shown(events_of(generation)) == generation.annotated + "\n"


def test_long_lines_are_not_broken_and_control_characters_are_escaped() -> None:
    generation = Generation(" \x1b[2J" + "x " * 40 + "\n\tend\r", (), (), "eos", 2)
    assert shown(events_of(generation)) == r" \x1b[2J" + "x " * 40 + "\n" + r"\tend\r" + "\n"
