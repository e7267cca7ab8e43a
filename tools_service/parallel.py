"""A function over a stream of arguments, here or in tasks on Ray, in order and in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Result = TypeVar("Result")
Run = Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], Iterator[Any]]


@contextmanager
def in_order(workers: int) -> Iterator[Run]:
    """``run(function, arguments)``, which gives the function's result for every tuple of arguments, in order.

    With 0 workers it calls the function here. Otherwise at most so many Ray tasks work at a time, on the
    cluster this process is connected to; without one RAY_ADDRESS is joined, or a local one started for the
    block. A task whose worker or node dies runs again.
    """
    if not workers:
        yield _here
        return
    import ray

    ours = not ray.is_initialized()
    if ours:
        local: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False}
        ray.init(log_to_driver=False, **({} if "RAY_ADDRESS" in os.environ else local))
    try:
        yield lambda function, arguments: _on_ray(function, arguments, workers)
    finally:
        if ours:
            ray.shutdown()


def _here(function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
    return (function(*one) for one in arguments)


def _on_ray(
    function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]], workers: int
) -> Iterator[Result]:
    import ray

    task = ray.remote(num_cpus=1)(function)
    pending: deque[Any] = deque()
    for one in arguments:
        if len(pending) > workers:  # one waits, so that no worker does
            yield ray.get(pending.popleft())
        pending.append(task.remote(*one))
    while pending:
        yield ray.get(pending.popleft())
