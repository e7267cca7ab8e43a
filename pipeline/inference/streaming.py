"""Events of many prompts at once, from a thread that decodes them together.

In: prompts of any thread or coroutine, at any time. Out: a stream of events for each. Continuous
batching is in decoder.py.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from pipeline.engine.model import LanguageModel
from pipeline.inference.generation import (
    CallEvent,
    EndEvent,
    Event,
    FailureEvent,
    ResultEvent,
    TextEvent,
)
from pipeline.inference.generator import Generator
from pipeline.inference.params import DecodingParams
from tools_service.tools.client import ToolClient


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Prompts that are decoded, that wait for a tool, and that have not begun."""

    running: int
    waiting: int
    pending: int


class EventStream:
    """The events of one prompt, the last of them an EndEvent. For one reader, in a thread or a coroutine.

    Iterating raises InferenceError if decoding cannot go on.
    """

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        self.cancelled = False

    def cancel(self) -> None:
        """Decode no further; the stream ends with what is there."""
        self.cancelled = True

    def put(self, event: Event | BaseException) -> None:
        self._events.put(event)

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self._events.get()
            if isinstance(event, BaseException):
                raise event
            yield event
            if isinstance(event, EndEvent):
                return

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            event = await asyncio.to_thread(self._events.get)
            if isinstance(event, BaseException):
                raise event
            yield event
            if isinstance(event, EndEvent):
                return


class StreamingEngine:
    """Decodes prompts of many threads together; at most `max_rows` at a time."""

    def __init__(self, model: LanguageModel, tools: ToolClient, max_rows: int = 32) -> None:
        self._generator = Generator(model, tools)
        self._requests: queue.SimpleQueue[tuple[str, DecodingParams, str | None, EventStream] | None]
        self._requests = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    def submit(self, prompt: str, params: DecodingParams, date: str | None = None) -> EventStream:
        """Decode a prompt; `date` (YYYY-MM-DD) is for dated tools. Any thread may call."""
        stream = EventStream()
        self._requests.put((prompt, params, date, stream))
        return stream

    @property
    def load(self) -> EngineLoad:
        """How many prompts there are now."""
        return EngineLoad(0, 0, self._requests.qsize())

    def close(self) -> None:
        """End the thread; streams that have not ended end as cancelled."""
        self._requests.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (request := self._requests.get()) is not None:
            prompt, params, date, stream = request
            try:
                [generation] = self._generator.generate([prompt], params, [date])
            except Exception as error:
                stream.put(error)
                continue
            for failed in generation.failed:
                stream.put(FailureEvent(failed))
            for call in generation.calls:
                stream.put(CallEvent(call.tool, call.input))
                stream.put(ResultEvent(call))
            stream.put(TextEvent(generation.text))
            stream.put(EndEvent(generation))
