"""The client of the tools: inputs to results or reasons, in order, without exceptions.

Annotation and inference use the same client. It asks equal calls once, caches answers, splits long
lists, gives up at a deadline with a reason, cleans every result (sanitize.py) and holds tools to
their contract. `LocalTools` runs tools in this process; serving/client.py asks those on Ray.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

from tools_service.config import ToolsConfig
from tools_service.contract.tool import (
    DEADLINE,
    EMPTY_RESULT,
    TRANSIENT,
    UNREACHABLE,
    Tool,
    ToolInput,
    ToolResult,
    answer,
    without_result,
)
from tools_service.tools.registry import load_tool
from tools_service.tools.sanitize import CountTokens, clean, count_words

T = TypeVar("T")

MAX_CACHE_BYTES = 256 * 2**20  # of one client; cache_size entries of usual calls take less


class ToolClient(Protocol):
    """What annotation and inference need of the tools."""

    def call(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """Return the answers to `inputs`, in order. Blocks; a coroutine uses `acall`."""
        ...

    async def acall(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """Return the answers to `inputs`, in order, without blocking the event loop."""
        ...


class CachingClient(ABC):
    """What both clients share: everything but how a list reaches its tool."""

    def __init__(self, config: ToolsConfig, count_tokens: CountTokens) -> None:
        self._config = config
        self._count_tokens = count_tokens
        self._specs = config.specs
        self._cache = _LruCache(config.cache_size)

    def call(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """Return the answers; a reason instead of an exception. Any thread may call."""
        return submit(self, tool, inputs).result()

    async def acall(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """Return the answers; a reason instead of an exception."""
        if not self._is_dated(tool):
            inputs = [ToolInput(call.text) for call in inputs]
        cached = {call: self._cache.get((tool, call)) for call in inputs}
        answers = {call: known for call, known in cached.items() if known is not None}
        missing = [call for call in cached if call not in answers]
        for call, uncleaned in zip(missing, await self._fetch(tool, missing), strict=True):
            answers[call] = self._clean(uncleaned)
            self._remember(tool, call, answers[call])
        return [answers[call] for call in inputs]

    @abstractmethod
    async def _ask(self, tool: str, inputs: list[ToolInput], deadline: float) -> list[ToolResult]:
        """Return the tool's answers to a list by `deadline` on the running loop's clock."""

    def _is_dated(self, tool: str) -> bool:
        """Whether the date counts. Without it, equal inputs of different texts are one call."""
        return tool in self._specs and self._specs[tool].dated

    async def _fetch(self, tool: str, inputs: list[ToolInput]) -> list[ToolResult]:
        if tool not in self._specs:
            return without_result(inputs, UNREACHABLE)
        deployment = self._config.of(tool).deployment
        deadline = asyncio.get_running_loop().time() + deployment.deadline_s
        size = deployment.list_size
        lists = [inputs[start : start + size] for start in range(0, len(inputs), size)]
        answers = await asyncio.gather(*(self._ask(tool, part, deadline) for part in lists))
        return [result for part in answers for result in part]

    def _clean(self, uncleaned: ToolResult) -> ToolResult:
        if uncleaned.result is None:
            return uncleaned
        text = clean(uncleaned.result, self._config.max_result_tokens, self._count_tokens)
        return ToolResult(result=text) if text else ToolResult(reason=EMPTY_RESULT)

    def _remember(self, tool: str, call: ToolInput, result: ToolResult) -> None:
        is_undated = self._is_dated(tool) and call.date is None  # "today" is another day tomorrow
        if not is_undated and result.reason not in TRANSIENT:
            self._cache.put((tool, call), result)


def submit(client: ToolClient, tool: str, inputs: Sequence[ToolInput]) -> Future[list[ToolResult]]:
    """Ask a tool without waiting: the future answers. Any thread may call."""
    return asyncio.run_coroutine_threadsafe(client.acall(tool, inputs), _background_loop())


class LocalTools(CachingClient):
    """Tools in this process. A tool that hangs keeps its daemon thread; its calls end in time."""

    def __init__(
        self, tools: Mapping[str, Tool], config: ToolsConfig, count_tokens: CountTokens = count_words
    ) -> None:
        super().__init__(config, count_tokens)
        self._tools = dict(tools)
        self._slots = {
            tool: threading.BoundedSemaphore(config.of(tool).deployment.threads) for tool in self._tools
        }

    @classmethod
    def start(
        cls, config: ToolsConfig, tools: Iterable[str], count_tokens: CountTokens = count_words
    ) -> LocalTools:
        """Load the named tools. What they read must exist: serving/local.py prepares it first."""
        return cls({name: load_tool(name, config) for name in tools}, config, count_tokens)

    async def _ask(self, tool: str, inputs: list[ToolInput], deadline: float) -> list[ToolResult]:
        if tool not in self._tools:
            return without_result(inputs, UNREACHABLE)
        left_s = deadline - asyncio.get_running_loop().time()
        work = functools.partial(self._answer, tool, inputs, left_s)
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.wrap_future(_run_in_thread(work))
        except TimeoutError:
            return without_result(inputs, DEADLINE)

    def _answer(self, tool: str, inputs: list[ToolInput], left_s: float) -> list[ToolResult]:
        if not self._slots[tool].acquire(timeout=max(left_s, 0.0)):
            return without_result(inputs, DEADLINE)
        try:
            return answer(self._tools[tool], inputs)
        finally:
            self._slots[tool].release()


class _LruCache:
    """The answers used last, at most `size`, and at most `max_bytes` with their inputs. Thread-safe."""

    def __init__(self, size: int, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self._size = size
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[tuple[str, ToolInput], ToolResult] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, ToolInput]) -> ToolResult | None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: tuple[str, ToolInput], value: ToolResult) -> None:
        with self._lock:
            self._bytes += _bytes(key, value)
            if key in self._entries:
                self._bytes -= _bytes(key, self._entries.pop(key))
            self._entries[key] = value
            while self._entries and (len(self._entries) > self._size or self._bytes > self._max_bytes):
                self._bytes -= _bytes(*self._entries.popitem(last=False))


def _bytes(key: tuple[str, ToolInput], value: ToolResult) -> int:
    """Return the memory of an entry's texts; the rest of it is small."""
    return sum(sys.getsizeof(text) for text in (key[1].text, key[1].date, value.result, value.reason))


def _run_in_thread(work: Callable[[], T]) -> Future[T]:
    """Run `work` in a daemon thread. Unlike an executor's, it does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="tool", daemon=True).start()
    return future


@functools.cache
def _background_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop for this process's blocking calls."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="tool-calls", daemon=True).start()
    return loop
