"""A function that is repeated while a block runs."""

from __future__ import annotations

import threading

import pytest

from pipeline.base.repeating import repeating

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("at_end", [True, False])
def test_it_is_called_at_the_start_and_at_the_end(at_end: bool) -> None:
    called, calls = threading.Event(), []

    def function() -> None:
        calls.append(threading.current_thread())
        called.set()

    with repeating(function, 3_600.0, at_end=at_end):
        assert called.wait(10)
    assert len(calls) == 1 + at_end
    assert not any(thread.is_alive() for thread in calls)


def test_it_is_called_again_and_again() -> None:
    thrice, calls = threading.Event(), []

    def function() -> None:
        calls.append(None)
        if len(calls) == 3:
            thrice.set()

    with repeating(function, 0.001):
        assert thrice.wait(10)


def test_the_thread_ends_when_the_block_fails() -> None:
    threads: list[threading.Thread] = []
    with (
        pytest.raises(KeyError),
        repeating(lambda: threads.append(threading.current_thread()), 3_600.0),
    ):
        raise KeyError
    assert not any(thread.is_alive() for thread in threads)
