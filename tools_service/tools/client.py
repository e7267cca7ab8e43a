"""How everybody calls a tool: a list of inputs to a list of results or reasons, in order, never an exception.

Annotation and inference use the same client. It sends equal calls once and remembers their answers, travels
in lists, gives up at a deadline with a reason, cleans every result (sanitize.py) and holds tools to their
contract. `LocalTools` runs tools in this process; serving/client.py has the client of tools on Ray Serve.
No Ray.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

from tools_service.config import ToolsConfig
from tools_service.tools.contract import (
    DATED_TOOLS,
    DEADLINE,
    EMPTY_RESULT,
    TOOL_NAMES,
    TRANSIENT,
    UNREACHABLE,
    Tool,
    ToolInput,
    ToolName,
    ToolResult,
    answer,
)
from tools_service.tools.registry import load_tool, prepare, require_available
from tools_service.tools.sanitize import CountTokens, clean, count_words

T = TypeVar("T")


class ToolClient(Protocol):
    """What steps 3 and 7 need of the tools."""

    def call(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """The answers to `inputs`, in order. Blocks; from a coroutine use `acall`."""
        ...

    async def acall(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """The same without blocking the event loop."""
        ...


class CachingClient(ABC):
    """What both clients share: everything but how a list reaches its tool."""

    def __init__(self, config: ToolsConfig, count_tokens: CountTokens) -> None:
        self._config = config
        self._count_tokens = count_tokens
        self._cache = _Cache(config.cache_size)

    def call(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """The answers to `inputs`, in order; a reason instead of an exception. Safe from any thread."""
        return asyncio.run_coroutine_threadsafe(self.acall(tool, inputs), _background_loop()).result()

    async def acall(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        """The answers to `inputs`, in order; a reason instead of an exception."""
        if tool not in DATED_TOOLS:
            inputs = [ToolInput(one.text) for one in inputs]
        answers: dict[ToolInput, ToolResult | None] = {one: self._cache.get((tool, one)) for one in inputs}
        missing = [one for one, known in answers.items() if known is None]
        for one, fresh in zip(missing, await self._fetch(tool, missing), strict=True):
            answers[one] = cleaned = self._cleaned(fresh)
            self._remember(tool, one, cleaned)
        return [known for known in map(answers.__getitem__, inputs) if known is not None]

    @abstractmethod
    async def _ask(self, tool: str, inputs: list[ToolInput], deadline: float) -> list[ToolResult]:
        """What the tool says to one list, at the latest at `deadline` on the running loop's clock."""

    async def _fetch(self, tool: str, inputs: list[ToolInput]) -> list[ToolResult]:
        if tool not in TOOL_NAMES:
            return without_result(inputs, UNREACHABLE)
        deployment = self._config.of(tool).deployment
        deadline = asyncio.get_running_loop().time() + deployment.deadline_s
        size = deployment.list_size
        lists = [inputs[start : start + size] for start in range(0, len(inputs), size)]
        answered = await asyncio.gather(*(self._ask(tool, part, deadline) for part in lists))
        return [result for part in answered for result in part]

    def _cleaned(self, answered: ToolResult) -> ToolResult:
        if answered.result is None:
            return answered
        text = clean(answered.result, self._config.max_result_tokens, self._count_tokens)
        return ToolResult(result=text) if text else ToolResult(reason=EMPTY_RESULT)

    def _remember(self, tool: str, one: ToolInput, answered: ToolResult) -> None:
        timeless = one.date is not None or tool not in DATED_TOOLS  # "today" is another day tomorrow
        if timeless and answered.reason not in TRANSIENT:
            self._cache.put((tool, one), answered)


class LocalTools(CachingClient):
    """Tools in this process. A tool that hangs keeps its (daemon) thread; its calls end at the deadline."""

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
        cls, config: ToolsConfig, tools: Iterable[ToolName], count_tokens: CountTokens = count_words
    ) -> LocalTools:
        """The named tools, built and loaded here; ToolUnavailableError if one cannot be had."""
        tools = tuple(tools)
        require_available(tools, config)
        prepare(tools, config)
        return cls({name: load_tool(name, config) for name in tools}, config, count_tokens)

    async def _ask(self, tool: str, inputs: list[ToolInput], deadline: float) -> list[ToolResult]:
        if tool not in self._tools:
            return without_result(inputs, UNREACHABLE)
        left_s = deadline - asyncio.get_running_loop().time()
        work = functools.partial(self._answer, tool, inputs, left_s)
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.wrap_future(_in_thread(work))
        except TimeoutError:
            return without_result(inputs, DEADLINE)

    def _answer(self, tool: str, inputs: list[ToolInput], left_s: float) -> list[ToolResult]:
        if not self._slots[tool].acquire(timeout=max(left_s, 0.0)):
            return without_result(inputs, DEADLINE)
        try:
            return answer(self._tools[tool], inputs)
        finally:
            self._slots[tool].release()


class _Cache:
    """The answers used last, at most `size` of them; safe from any thread."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[tuple[str, ToolInput], ToolResult] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, ToolInput]) -> ToolResult | None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: tuple[str, ToolInput], value: ToolResult) -> None:
        with self._lock:
            self._entries[key] = value
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)


def without_result(inputs: Sequence[ToolInput], reason: str) -> list[ToolResult]:
    return [ToolResult(reason=reason)] * len(inputs)


def _in_thread(work: Callable[[], T]) -> Future[T]:
    """Run `work` in a daemon thread: unlike an executor's, one that hangs does not keep the process alive."""
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
    """The loop on which blocking calls of this process run."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="tool-calls", daemon=True).start()
    return loop
