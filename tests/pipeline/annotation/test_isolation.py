"""The failure budget, the starts of batches without an end, and the read-write lock."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.annotation.isolation import MIN_TEXTS, FailureBudget, ReadWriteLock
from pipeline.annotation.progress import ProgressActor

pytestmark = pytest.mark.unit


def test_a_few_failures_among_few_texts_are_no_reason_to_stop() -> None:
    failures = FailureBudget(0.01)
    failures.add((number, "ToolError: no") for number in range(10))
    assert failures.verdict(12) is None
    failures.add([(10, "ToolError: no")])
    assert failures.verdict(12) is not None
    assert failures.verdict(MIN_TEXTS + 100) is None


def test_no_failure_at_all_may_be_asked_for() -> None:
    failures = FailureBudget(0.0)
    assert failures.verdict(1) is None
    failures.add([(7, "ToolError: no")])
    assert failures.verdict(10**9) is not None


def test_how_much_of_the_budget_is_used() -> None:
    failures = FailureBudget(0.01, [(number, "a: b") for number in range(5)])
    assert failures.used(12) == 0.5  # of the ten failures that MIN_TEXTS texts may have
    assert failures.used(5_000) == 0.1
    assert FailureBudget(0.0).used(12) == 0
    assert FailureBudget(0.0, [(7, "a: b")]).used(12) >= 1


def test_those_of_earlier_sessions_count() -> None:
    assert FailureBudget(0.001, [(1, "a: b"), (2, "a: c")]).verdict(50) is not None


def test_a_text_that_fails_again_counts_once() -> None:
    failures = FailureBudget(0.0015, [(1, "a: b")])
    failures.add([(1, "a: b")])
    assert failures.verdict(50) is None


def test_the_verdict_has_reasons_by_count_and_examples() -> None:
    failures = FailureBudget(0.0)
    failures.add((number, f"ToolError: bad {number}") for number in range(7))
    failures.add([(100, "process died: twice")])
    verdict = failures.verdict(2_000)
    assert verdict is not None
    assert verdict.startswith("8 of 2,000 texts failed, more than max_failed_share = 0 allows")
    assert "7 x ToolError: bad 0 (texts 0, 1, 2, 3, 4); 1 x process died: twice (texts 100)" in verdict


def test_starts_without_an_end_are_counted_by_batch() -> None:
    crashes = ProgressActor(tasks=1, done=0, failures=FailureBudget(0.0), run="tests")
    assert [crashes.begin((1, 2)), crashes.begin((1, 2)), crashes.begin((1,))] == [0, 1, 0]
    crashes.end((1, 2))
    crashes.end((1, 2))
    assert [crashes.begin((1, 2)), crashes.begin((1,))] == [0, 1]


def test_exclusive_access_is_alone_and_shared_access_is_concurrent() -> None:
    async def work() -> list[str]:
        lock, log = ReadWriteLock(), []

        async def beside(name: str) -> None:
            async with lock.shared():
                log.append(f"{name} begins")
                await asyncio.sleep(0.01)
                log.append(f"{name} ends")

        async def alone() -> None:
            async with lock.exclusive():
                log.append("alone begins")
                await asyncio.sleep(0.01)
                log.append("alone ends")

        early = [asyncio.create_task(beside("a")), asyncio.create_task(beside("b"))]
        await asyncio.sleep(0)
        await asyncio.gather(*early, alone(), beside("c"))
        return log

    log = asyncio.run(work())
    assert sorted(log[:2]) == ["a begins", "b begins"]
    assert log.index("alone ends") == log.index("alone begins") + 1
    assert log.index("alone begins") > max(log.index("a ends"), log.index("b ends"))


def test_the_lock_is_released_on_an_exception() -> None:
    async def work() -> None:
        lock = ReadWriteLock()
        with pytest.raises(ZeroDivisionError):
            async with lock.shared():
                raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError):
            async with lock.exclusive():
                raise ZeroDivisionError
        async with lock.exclusive():
            pass

    asyncio.run(asyncio.wait_for(work(), 5))
