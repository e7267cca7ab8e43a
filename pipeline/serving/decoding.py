"""The events of several prompts as one stream, which ends with its reader.

In: a `Decode` for one prompt, and a request. Out: events with the index of their prompt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from typing import Protocol, TypeVar

from starlette.requests import Request

from pipeline.inference.generation import EndEvent, Event
from pipeline.inference.params import DecodingParams
from pipeline.serving.errors import refused_prompt, replica_lost

Prompt = str | list[int]
"""A text, or the token ids that a chat template gives."""

T = TypeVar("T")


class Decode(Protocol):
    """Gives the events of a prompt in lists: as they happen, or all at the end without `stream`.

    Raises ApiError. Closing the generator ends the decoding.
    """

    def __call__(
        self, prompt: Prompt, params: DecodingParams, date: str | None, *, stream: bool
    ) -> AsyncGenerator[list[Event], None]: ...


async def decode_all(
    decode: Decode,
    prompts: Sequence[Prompt],
    params: DecodingParams,
    date: str | None,
    field: str,
    *,
    stream: bool,
) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of all prompts, each with the index of its prompt, until all have ended.

    ApiError if one fails; it names `field` if the prompt is refused. The others end then.
    """
    arrived: asyncio.Queue[tuple[int, list[Event] | Exception]] = asyncio.Queue()

    async def forward(index: int, prompt: Prompt) -> None:
        ended = False
        try:
            async with aclosing(decode(prompt, params, date, stream=stream)) as events:
                async for batch in events:
                    ended = ended or isinstance(batch[-1], EndEvent)
                    arrived.put_nowait((index, batch))
            if not ended:
                raise replica_lost()
        except Exception as error:
            arrived.put_nowait((index, error))

    tasks = [asyncio.create_task(forward(index, prompt)) for index, prompt in enumerate(prompts)]
    running = len(tasks)
    try:
        while running:
            index, batch = await arrived.get()
            if isinstance(batch, Exception):
                raise batch
            for event in batch:
                if isinstance(event, EndEvent):
                    running -= 1
                    if event.generation.refused is not None:
                        raise refused_prompt(event.generation.refused, field)
                yield index, event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T | None:
    """The result of `work`; None, and `work` is cancelled, if the client goes away before."""
    task, gone = asyncio.ensure_future(work), asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for future in (task, gone):
            future.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
