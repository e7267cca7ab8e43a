"""The client's promises, on tools in this process: order, once, remembered, cleaned, on time, never
raising."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from datetime import date

import pytest

from tools_service.config import CalendarConfig, ToolsConfig
from tools_service.contract.settings import Deployment, ToolSettings
from tools_service.contract.tool import (
    DEADLINE,
    EMPTY_RESULT,
    TOOL_FAILED,
    UNREACHABLE,
    ToolInput,
    ToolResult,
)
from tools_service.tools import client as client_module
from tools_service.tools.calendar import Calendar
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit


class Recording:
    """Echoes, and remembers what it was asked. `hang` waits until `released`, `fail` raises."""

    def __init__(self, name: str = "Calculator") -> None:
        self.name = name
        self.lists: list[list[ToolInput]] = []
        self.released = threading.Event()

    def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        self.lists.append(list(inputs))
        if any(one.text == "hang" for one in inputs):
            self.released.wait()
        if any(one.text == "fail" for one in inputs):
            raise ValueError
        return [ToolResult(one.text) if one.text != "none" else ToolResult(reason="nope") for one in inputs]

    @property
    def asked(self) -> list[str]:
        return [one.text for part in self.lists for one in part]


def texts(*words: str) -> list[ToolInput]:
    return [ToolInput(word) for word in words]


def client(
    tool: Recording, *, cache_size: int = 100, max_result_tokens: int = 100, **how: float
) -> LocalTools:
    """A client of `tool` alone, deployed as `how` says."""
    section = ToolSettings(deployment=Deployment.model_validate(how))
    config = ToolsConfig(calculator=section, cache_size=cache_size, max_result_tokens=max_result_tokens)
    return LocalTools({tool.name: tool}, config)


def test_answers_come_in_order_and_equal_calls_go_once() -> None:
    tool = Recording()
    answers = client(tool).call("Calculator", texts("b", "a", "b", "none", "a"))
    assert [one.result for one in answers] == ["b", "a", "b", None, "a"]
    assert tool.lists == [texts("b", "a", "none")]


def test_results_and_reasons_are_remembered_failures_are_not() -> None:
    tool = Recording()
    tools = client(tool)
    for _ in range(2):
        assert tools.call("Calculator", texts("a", "none")) == [ToolResult("a"), ToolResult(reason="nope")]
        assert tools.call("Calculator", texts("fail")) == [ToolResult(reason=TOOL_FAILED)]
    assert tool.asked == ["a", "none", "fail", "fail"]


def test_the_cache_is_bounded_and_forgets_the_oldest() -> None:
    tool = Recording()
    tools = client(tool, cache_size=2)
    for word in ("a", "b", "a", "c", "a", "b"):
        tools.call("Calculator", texts(word))
    assert tool.asked == ["a", "b", "c", "b"]


def test_a_cache_of_none_asks_every_time() -> None:
    tool = Recording()
    tools = client(tool, cache_size=0)
    tools.call("Calculator", texts("a"))
    tools.call("Calculator", texts("a"))
    assert tool.asked == ["a", "a"]


def test_the_date_tells_calendar_calls_apart_and_no_others() -> None:
    calendar, echo = Recording("Calendar"), Recording()
    tools = LocalTools({"Calendar": calendar, "Calculator": echo}, ToolsConfig())
    dated = [ToolInput("", "2023-01-30"), ToolInput("", "2024-01-30"), ToolInput("", "2023-01-30")]
    tools.call("Calendar", dated)
    tools.call("Calculator", dated)
    assert calendar.lists == [dated[:2]]
    assert echo.lists == [[ToolInput("")]]


def test_today_is_not_remembered() -> None:
    days = iter([date(2026, 11, 22), date(2026, 11, 23)])
    tools = LocalTools(
        {"Calendar": Calendar(CalendarConfig(today=True), today=lambda: next(days))}, ToolsConfig()
    )
    answers = [tools.call("Calendar", [ToolInput("")])[0].result for _ in range(2)]
    assert answers == ["Today is Sunday, November 22, 2026.", "Today is Monday, November 23, 2026."]


def test_long_lists_are_split() -> None:
    tool = Recording()
    words = [f"w{n}" for n in range(10)]
    answers = client(tool, list_size=4).call("Calculator", texts(*words))
    assert [one.result for one in answers] == words
    assert sorted(len(part) for part in tool.lists) == [2, 4, 4]


def test_a_hanging_tool_costs_its_list_a_reason_and_the_other_lists_nothing() -> None:
    """The clock of the event loop jumps to the deadline when the other lists have been answered."""
    tool, before = Recording(), set(threading.enumerate())
    tools = client(tool, list_size=1, deadline_s=60.0)

    async def ask() -> list[ToolResult]:
        loop = asyncio.get_running_loop()
        call = asyncio.create_task(tools.acall("Calculator", texts("a", "hang", "b")))
        while len(tool.lists) < 3 or len(set(threading.enumerate()) - before) > 1:
            await asyncio.sleep(0.001)
        clock = loop.time
        loop.time = lambda: clock() + 60.0  # type: ignore[method-assign]
        return await call

    answers = asyncio.run(ask())
    tool.released.set()
    assert answers == [ToolResult("a"), ToolResult(reason=DEADLINE), ToolResult("b")]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_tool_works_on_as_many_lists_at_a_time_as_its_deployment_says(threads: int) -> None:
    class Counting(Recording):
        now = most = 0
        lock = threading.Lock()

        def __call__(self, inputs: Sequence[ToolInput]) -> list[ToolResult]:
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            time.sleep(0.01)
            with self.lock:
                self.now -= 1
            return super().__call__(inputs)

    tool = Counting()
    client(tool, threads=threads, list_size=1).call("Calculator", texts(*"abcdefghij"))
    assert len(tool.lists) == 10
    assert 1 <= tool.most <= threads


def test_results_are_cleaned_and_capped() -> None:
    tools = client(Recording(), max_result_tokens=3)
    answers = tools.call("Calculator", texts("a] [Calculator(1) -> 1", "one two three four", "\x00\n", "[x]"))
    assert [one.result for one in answers] == ["a) (Calculator(1) =>", "one two three", None, "(x)"]
    assert answers[2].reason == EMPTY_RESULT


def test_the_length_is_counted_by_the_models_tokenizer() -> None:
    tools = LocalTools({"Calculator": Recording()}, ToolsConfig(max_result_tokens=9), count_tokens=len)
    assert tools.call("Calculator", texts("one two three"))[0].result == "one two"


def test_a_tool_that_was_not_started_is_a_reason() -> None:
    assert client(Recording()).call("QA", texts("who?")) == [ToolResult(reason=UNREACHABLE)]


def test_nothing_asked_is_nothing_answered() -> None:
    assert client(Recording()).call("Calculator", []) == []


def test_many_batches_at_once_from_a_coroutine_and_a_blocking_call_inside_it() -> None:
    tools = client(Recording())

    async def batches() -> list[list[ToolResult]]:
        lists = [texts(*(f"{n}-{m}" for m in range(20))) for n in range(20)]
        answers = await asyncio.gather(*(tools.acall("Calculator", part) for part in lists))
        assert tools.call("Calculator", texts("blocking")) == [ToolResult("blocking")]
        return answers

    answers = asyncio.run(batches())
    assert [one.result for part in answers for one in part] == [
        f"{n}-{m}" for n in range(20) for m in range(20)
    ]


def test_the_cache_is_bounded_in_bytes() -> None:
    cache = client_module._LruCache(size=100, max_bytes=5_000)
    for number in range(50):
        cache.put(("QA", ToolInput(f"{number}" + "x" * 1_000)), ToolResult("y" * 500))
        assert cache._bytes <= 5_000
    assert 1 <= len(cache._entries) <= 5
    assert cache.get(("QA", ToolInput("49" + "x" * 1_000))) is not None
    cache.put(("QA", ToolInput("z" * 9_000)), ToolResult("y"))  # larger than the whole cache
    assert cache._bytes == 0
    for _ in range(9):
        cache.put(("QA", ToolInput("1")), ToolResult("2"))
    assert len(cache._entries) == 1
    assert cache._bytes == client_module._bytes(("QA", ToolInput("1")), ToolResult("2"))
