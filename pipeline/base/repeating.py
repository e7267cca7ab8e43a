"""A function that is called again and again while something else runs, such as to draw its progress."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(function: Callable[[], object], interval_s: float, *, at_end: bool = True) -> Iterator[None]:
    """Call `function` in a thread at the start of the block, then every `interval_s` seconds, and at its
    end unless `at_end` is false. The thread has ended after the block."""
    stop = threading.Event()

    def run() -> None:
        function()
        while not stop.wait(interval_s):
            function()
        if at_end:
            function()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
