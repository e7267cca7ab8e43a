"""Runs the HTTP interface in this process, without Ray: one engine, or a scripted `Decode`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from openai import OpenAI

from pipeline.inference.generation import EndEvent, Event
from pipeline.inference.params import DecodingParams
from pipeline.inference.streaming import EventStream, StreamingEngine
from pipeline.serving.app import Endpoint, create_app
from pipeline.serving.chat import Render, plain
from pipeline.serving.decoding import Decode, Prompt
from tests.tools_service.serving.endpoints import serving
from tools_service.config import HttpConfig
from tools_service.contract.declarations import known_tools
from tools_service.contract.schemas import arguments_of

NAME = "folder/model"
ARGUMENTS = {name: arguments_of(spec) for name, spec in known_tools().items()}


class EngineDecode:
    """Decodes with an engine of this process; keeps the streams."""

    def __init__(self, engine: StreamingEngine) -> None:
        self.engine = engine
        self.streams: list[EventStream] = []

    async def __call__(
        self, prompt: Prompt, params: DecodingParams, date: str | None, *, stream: bool
    ) -> AsyncGenerator[list[Event], None]:
        events = self.engine.submit(prompt, params, date)
        self.streams.append(events)
        batch: list[Event] = []
        try:
            async for event in events:
                batch.append(event)
                if stream or isinstance(event, EndEvent):
                    yield batch
                    batch = []
        finally:
            events.cancel()


class ScriptedDecode:
    """Gives the same events for every prompt, then raises `error` if there is one. Keeps the requests."""

    def __init__(self, events: Sequence[Event], error: Exception | None = None) -> None:
        self.events, self.error = events, error
        self.requests: list[tuple[Prompt, DecodingParams, str | None]] = []

    async def __call__(
        self, prompt: Prompt, params: DecodingParams, date: str | None, *, stream: bool
    ) -> AsyncGenerator[list[Event], None]:
        self.requests.append((prompt, params, date))
        for event in self.events:
            yield [event]
        if self.error is not None:
            raise self.error


@contextmanager
def running(
    decode: Decode,
    params: DecodingParams | None = None,
    *,
    render: Render = plain,
    token: str | None = None,
    **http: Any,
) -> Iterator[str]:
    """The address of the interface."""
    config = HttpConfig(port=0, **http)
    params = params or DecodingParams(k=3)
    endpoint = Endpoint(decode, params, "2026-01-31", ARGUMENTS, render, name=NAME, http=config, token=token)
    app = create_app(endpoint, config, lambda: (True, {"replicas": {"RUNNING": 1}}))
    with serving(app, config) as url:
        yield url


def client(url: str, token: str = "none") -> OpenAI:
    """OpenAI's client, which asks once."""
    return OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0, timeout=60)
