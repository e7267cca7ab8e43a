"""Events of many prompts at once, from a thread that decodes them together (decoder.py).

In: prompts of any thread or coroutine, at any time. Out: a stream of events for each.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from pipeline.engine.model import LanguageModel
from pipeline.inference.decoder import Decoder
from pipeline.inference.generation import EndEvent, Event, InferenceError
from pipeline.inference.generator import Generator
from pipeline.inference.params import DecodingParams
from pipeline.inference.request import Request
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
        self._events: queue.SimpleQueue[Event | InferenceError] = queue.SimpleQueue()
        self._reader: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._cancel: Callable[[], None] | None = None

    def cancel(self) -> None:
        """Decode no further. The stream ends with what is there. Any thread may call."""
        if self._cancel is not None:
            self._cancel()

    def start(self, cancel: Callable[[], None]) -> None:
        """Say how decoding is ended."""
        self._cancel = cancel

    def put(self, event: Event | InferenceError) -> None:
        """Add an event. Any thread may call."""
        self._events.put(event)
        if self._reader is not None:
            loop, arrived = self._reader
            try:
                loop.call_soon_threadsafe(arrived.set)
            except RuntimeError:  # the reader's loop is closed: nobody reads any more
                self.cancel()

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = _raised(self._events.get())
            yield event
            if isinstance(event, EndEvent):
                return

    async def __aiter__(self) -> AsyncIterator[Event]:
        arrived = asyncio.Event()
        self._reader = asyncio.get_running_loop(), arrived
        while True:
            while self._events.empty():
                await arrived.wait()
                arrived.clear()
            event = _raised(self._events.get_nowait())
            yield event
            if isinstance(event, EndEvent):
                return


class StreamingEngine:
    """Decodes prompts of many threads together; at most `max_rows` at a time."""

    def __init__(self, model: LanguageModel, tools: ToolClient, max_rows: int = 32) -> None:
        self._generator = Generator(model, tools)
        self._decoder = Decoder(model, tools, max_rows)
        self._streams: dict[Request, EventStream] = {}
        self._error: InferenceError | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    def submit(self, prompt: str, params: DecodingParams, date: str | None = None) -> EventStream:
        """Decode a prompt; `date` (YYYY-MM-DD) is for dated tools. Any thread may call.

        Raises InferenceError if the engine has ended.
        """
        stream = EventStream()
        request = self._generator.request(prompt, params, date, stream.put)
        if request.generation is not None:  # refused
            return stream
        stream.start(lambda: self._cancel(request))
        with self._lock:
            if self._error is not None:
                raise self._error
            self._streams = {r: s for r, s in self._streams.items() if r.generation is None}
            self._streams[request] = stream
            self._decoder.inbox.put(request)
        return stream

    @property
    def load(self) -> EngineLoad:
        """How many prompts there are now."""
        decoder = self._decoder
        return EngineLoad(decoder.running, decoder.waiting, decoder.pending)

    @property
    def is_alive(self) -> bool:
        """Whether prompts can still be decoded."""
        return self._error is None

    def close(self) -> None:
        """End the thread; streams that have not ended end as cancelled."""
        self._decoder.inbox.put(None)
        self._thread.join()

    def _cancel(self, request: Request) -> None:
        request.cancelled = True
        self._decoder.inbox.put(request)

    def _run(self) -> None:
        error = InferenceError("decoding was stopped")
        try:
            while self._decoder.step():
                pass
        except Exception as cause:
            error = InferenceError(f"decoding stopped: {cause}")
            error.__cause__ = cause
        with self._lock:
            self._error = error
            for request, stream in self._streams.items():
                if request.generation is None:
                    if error.__cause__ is None:
                        request.finish("cancelled")
                    else:
                        stream.put(error)


def _raised(event: Event | InferenceError) -> Event:
    if isinstance(event, InferenceError):
        raise event
    return event
