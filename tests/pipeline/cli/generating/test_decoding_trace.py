"""The record of every call that was begun, for people and as JSON."""

from __future__ import annotations

from typing import get_args

import pytest

from pipeline.cli.generating.decoding_trace import STOPS, DecodingTrace, failure
from pipeline.inference.call_parser import CompletedCall, FailedCall
from pipeline.inference.generation import (
    BeginEvent,
    CallEvent,
    Event,
    FailureEvent,
    Generation,
    ResultEvent,
    StopReason,
    TextEvent,
)

pytestmark = pytest.mark.unit


def trace_of(*events: Event) -> DecodingTrace:
    ticks = iter(range(100))
    trace = DecodingTrace(clock=lambda: float(next(ticks)))
    for event in events:
        trace.add(event)
    return trace


ASKED = CompletedCall("QA", "Who?", "Ada", 4)
EVENTS = (
    BeginEvent(0, 7),
    FailureEvent(FailedCall("QA(Wh\n", "newline", 0)),
    TextEvent(" She"),
    BeginEvent(4, 1),
    CallEvent("QA", "Who?"),
    ResultEvent(ASKED),
)


def test_a_call_has_its_place_its_rank_its_end_and_the_time_of_its_tool() -> None:
    first, second = trace_of(*EVENTS).json()
    assert first == {
        "position": 0,
        "rank": 7,
        "written": "QA(Wh\n",
        "result": None,
        "reason": "newline",
        "seconds": None,
    }
    assert second == {
        "position": 4,
        "rank": 1,
        "written": "QA(Who?)",
        "result": "Ada",
        "reason": None,
        "seconds": 1.0,
    }


def test_the_calls_of_a_chain_are_told_apart() -> None:
    inner = CompletedCall("QA", "How many?", "27", 0)
    outer = CompletedCall("Calculator", "27 + 4", "31", 0)
    trace = trace_of(
        *(BeginEvent(0, 1), BeginEvent(0, 2), CallEvent("QA", "How many?"), ResultEvent(inner)),
        *(CallEvent("Calculator", "27 + 4"), ResultEvent(outer)),
    )
    assert [(call.rank, call.written, call.result) for call in trace.calls] == [
        (1, "Calculator(27 + 4)", "31"),
        (2, "QA(How many?)", "27"),
    ]


def test_for_people_every_call_is_a_line_in_words() -> None:
    failed = FailedCall("QA(Wh\n", "newline", 0)
    generation = Generation(" She", (ASKED,), (failed,), "length", 9, None, 5, 20)
    lines = list(trace_of(*EVENTS).lines("Who\x1b?", generation))
    assert lines[0] == r"trace of 'Who\\x1b?'"
    assert lines[1] == (r"  at character 0, <API> ranked 7: QA(Wh\n: failed, its input has a line break")
    assert lines[2] == "  at character 4, <API> ranked 1: QA(Who?) -> Ada (answered in 1.000 s)"
    assert lines[3].startswith(
        "  1 call and 1 failed call; 9 tokens of text, 20 chosen by the model after 5 "
    )
    assert lines[3].endswith("ended by: --max-new-tokens")


def test_every_reason_has_words() -> None:
    assert set(STOPS) == set(get_args(StopReason))
    assert failure("division by zero") == "no result from the tool: division by zero"
    assert failure("\x1b[1m") == r"no result from the tool: \x1b[1m"
