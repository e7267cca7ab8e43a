"""Events of prompts that are decoded together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from pipeline.engine.model import LanguageModel
from pipeline.inference.call_parser import CompletedCall, FailedCall
from pipeline.inference.generation import (
    BeginEvent,
    CallEvent,
    EndEvent,
    Event,
    FailureEvent,
    InferenceError,
    ResultEvent,
    TextEvent,
)
from pipeline.inference.generator import Generator
from pipeline.inference.params import DecodingParams
from pipeline.inference.streaming import StreamingEngine
from tests.pipeline.inference.test_decoder import Blocked, prompts
from tests.pipeline.inference.trained import UnsteadyTools, trained_model
from tests.pipeline.scripted import ScriptedModel
from tools_service.tools.client import ToolClient

pytestmark = pytest.mark.unit

KINDS = ["bytes", "words", "merging", "metaspace"]
PROMPT = "The answer to 27 + 4 is"
CALLED = PROMPT + "| [|QA|(|Why?|)| ->", PROMPT + " [QA(Why?) -> 31]| because."


@contextmanager
def engine(model: LanguageModel, tools: ToolClient, max_rows: int = 8) -> Iterator[StreamingEngine]:
    running = StreamingEngine(model, tools, max_rows)
    try:
        yield running
    finally:
        running.close()


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextEvent))


@pytest.mark.parametrize("kind", KINDS)
def test_events_come_in_the_order_in_which_things_happen(kind: str) -> None:
    paths = [PROMPT + "| so| it| is", PROMPT + "| so| it| is [QA(Why?) -> 31]| because."]
    paths.append(PROMPT + "| so| it| is| [|QA|(|Why?|)| ->")
    with engine(ScriptedModel(kind, paths), Blocked()) as running:
        events = list(running.submit(PROMPT, DecodingParams(k=3)))
    call = CompletedCall("QA", "Why?", "31", len(" so it is"))
    kinds = [type(event) for event in events]
    begin = kinds.index(BeginEvent)
    assert text_of(events[:begin]) == " so it is"
    assert events[begin].position == call.position  # type: ignore[union-attr]
    assert events[begin + 1 : begin + 3] == [CallEvent("QA", "Why?"), ResultEvent(call)]
    assert text_of(events[begin + 3 :]) == " because."
    assert kinds[-1] is EndEvent
    assert events[-1].generation.calls == (call,)  # type: ignore[union-attr]


def test_a_failed_call_is_an_event() -> None:
    paths = [PROMPT + "| [|Calculator|(|27|\n", PROMPT + "| thirty."]
    with engine(ScriptedModel("words", paths), Blocked()) as running:
        events = list(running.submit(PROMPT, DecodingParams()))
    assert FailureEvent(FailedCall("Calculator(27\n", "newline", 0)) in events
    assert text_of(events) == " thirty."


def test_streams_of_many_threads_say_what_the_generator_says() -> None:
    model, texts = trained_model(), prompts(40, seed=8)
    params = DecodingParams(max_new_tokens=16, max_calls=2)
    tools = UnsteadyTools(waits=True)
    expected = list(Generator(model, tools).generate(texts, params))
    found: dict[int, list[Event]] = {}
    with engine(model, tools) as running:

        def read(first: int) -> None:
            for index in range(first, len(texts), 8):
                found[index] = list(running.submit(texts[index], params))

        threads = [threading.Thread(target=read, args=(first,)) for first in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (running.load.running, running.load.waiting, running.load.pending) == (0, 0, 0)
    for index, generation in enumerate(expected):
        *_, end = found[index]
        assert end == EndEvent(generation)
        assert text_of(found[index]) == generation.text


def test_coroutines_read_streams_too() -> None:
    model, texts = trained_model(), prompts(10, seed=9)

    async def read(running: StreamingEngine, text: str) -> str:
        return text_of([event async for event in running.submit(text, DecodingParams(max_new_tokens=12))])

    async def read_all(running: StreamingEngine) -> list[str]:
        return await asyncio.gather(*(read(running, text) for text in texts))

    with engine(model, UnsteadyTools(waits=True)) as running:
        found = asyncio.run(read_all(running))
    expected = Generator(model, UnsteadyTools(waits=False)).generate(texts, DecodingParams(max_new_tokens=12))
    assert found == [generation.text for generation in expected]


def test_a_refused_prompt_ends_at_once() -> None:
    with engine(ScriptedModel("bytes", [], 10), Blocked()) as running:
        [event] = running.submit("far too long a prompt", DecodingParams())
    assert isinstance(event, EndEvent)
    assert event.generation.refused is not None


def test_cancelling_ends_a_stream_and_no_other() -> None:
    with engine(
        ScriptedModel("bytes", [*CALLED, "1 is| [|Calculator|(|1|)| ->"]), tools := Blocked()
    ) as running:
        waits, other = running.submit("1 is", DecodingParams()), running.submit(PROMPT, DecodingParams())
        assert text_of(list(other)) == " because."
        assert tools.asked.wait(10)
        waits.cancel()  # while the engine has nothing else to do
        *_, end = waits
        assert isinstance(end, EndEvent)
        assert end.generation.stop_reason == "cancelled"
        tools.release()


def test_closing_ends_streams_and_refuses_prompts() -> None:
    with engine(ScriptedModel("bytes", ["1 is| [|Calculator|(|1|)| ->"]), tools := Blocked()) as running:
        stream = running.submit("1 is", DecodingParams())
        assert tools.asked.wait(10)
    *_, end = stream
    assert isinstance(end, EndEvent)
    assert end.generation.stop_reason == "cancelled"
    assert not running.is_alive
    with pytest.raises(InferenceError, match="stopped"):
        running.submit("1 is", DecodingParams())
    tools.release()


def test_an_error_of_the_model_reaches_every_stream() -> None:
    class Broken(ScriptedModel):
        def forward(self, *inputs: object, **options: object) -> torch.Tensor:
            raise RuntimeError("broken")

    running = StreamingEngine(Broken("bytes", []), Blocked())
    stream = running.submit("a", DecodingParams())
    with pytest.raises(InferenceError, match="decoding stopped: broken"):
        list(stream)
    with pytest.raises(InferenceError, match="decoding stopped: broken"):
        running.submit("b", DecodingParams())
    running.close()
