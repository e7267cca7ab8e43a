"""Events as choices: text, calls with results, failed calls, the end."""

from __future__ import annotations

import json

import pytest

from pipeline.inference.call_parser import CompletedCall, FailedCall
from pipeline.inference.generation import (
    CallEvent,
    EndEvent,
    Event,
    FailureEvent,
    Generation,
    ResultEvent,
    StopReason,
    TextEvent,
)
from pipeline.serving.choices import Choice, Reply
from tests.pipeline.serving.endpoint import ARGUMENTS

pytestmark = pytest.mark.unit


def end(reason: StopReason = "eos", tokens: int = 3) -> EndEvent:
    return EndEvent(Generation("", (), (), reason, tokens, prompt_tokens=5, sampled_tokens=9))


def test_a_call_keeps_its_id_from_the_question_to_the_result() -> None:
    choice = Choice(0, ARGUMENTS)
    _, asked = choice.add(CallEvent("QA", "Why?"))
    _, answered = choice.add(ResultEvent(CompletedCall("QA", "Why?", "31", 4)))
    assert asked is not None
    assert answered is not None
    assert asked["id"] == answered["id"]
    assert (asked["result"], asked["position"]) == (None, None)
    assert answered == {
        "id": "call_0_0",
        "type": "function",
        "function": {"name": "QA", "arguments": json.dumps({"input": "Why?"})},
        "result": "31",
        "reason": None,
        "position": 4,
    }


def test_a_call_that_fails_has_its_reason_and_what_was_written() -> None:
    choice = Choice(1, ARGUMENTS)
    choice.add(CallEvent("QA", "Why?"))
    _, failed = choice.add(FailureEvent(FailedCall("QA(Why?) ->", "deadline", 2)))
    _, nameless = choice.add(FailureEvent(FailedCall("Sum(1)", "no_tool", 2)))
    assert failed is not None
    assert nameless is not None
    assert (failed["id"], failed["result"], failed["reason"]) == ("call_1_0", None, "deadline")
    assert json.loads(failed["function"]["arguments"]) == {"input": "Why?"}
    assert nameless["function"] == {"name": None, "arguments": None}
    assert nameless["written"] == "Sum(1)"
    assert list(choice.calls) == ["call_1_0", "call_1_1"]


def test_the_inner_call_of_a_chain_ends_first() -> None:
    choice = Choice(0, ARGUMENTS)
    choice.add(CallEvent("Calculator", "1 + 1"))
    choice.add(ResultEvent(CompletedCall("Calculator", "1 + 1", "2", 0)))
    choice.add(CallEvent("QA", "Why 2?"))
    choice.add(ResultEvent(CompletedCall("QA", "Why 2?", "31", 0)))
    assert [call["result"] for call in choice.calls.values()] == ["2", "31"]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("eos", "stop"), ("stop", "stop"), ("length", "length"), ("context", "length")],
)
def test_a_choice_that_could_go_on_ends_with_length(reason: StopReason, finish: str) -> None:
    choice = Choice(0, ARGUMENTS)
    assert choice.finish_reason is None
    choice.add(end(reason))
    assert choice.finish_reason == finish


@pytest.mark.parametrize("chat", [False, True])
def test_the_chunks_together_are_the_whole_answer(chat: bool) -> None:
    events: list[Event] = [TextEvent(" a"), CallEvent("QA", "Why?")]
    events += [ResultEvent(CompletedCall("QA", "Why?", "31", 2)), TextEvent(" b"), end()]
    streamed, whole = Reply("m", 2, ARGUMENTS, chat=chat), Reply("m", 2, ARGUMENTS, chat=chat)
    chunks = streamed.opening() + [
        chunk for event in events for index in (1, 0) for chunk in streamed.chunks(index, event)
    ]
    for event in events:
        for choice in whole.choices:
            choice.add(event)
    answer = whole.whole()
    for index in (0, 1):
        parts = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        if chat:
            text = "".join(part["delta"].get("content", "") for part in parts)
            assert parts[0]["delta"]["role"] == "assistant"
            assert answer["choices"][index]["message"]["content"] == text == " a b"
        else:
            text = "".join(part["text"] for part in parts)
            assert answer["choices"][index]["text"] == text == " a b"
        calls = {call["id"]: call for part in parts for call in part.get("toolformer", {}).get("calls", [])}
        assert list(calls.values()) == answer["choices"][index]["toolformer"]["calls"]
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == ["stop"]
    assert streamed.usage == answer["usage"]
    assert answer["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 6,
        "total_tokens": 16,
        "sampled_tokens": 18,
    }
