"""A function over a stream of arguments, here or in processes on Ray, in order and in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Result = TypeVar("Result")


@contextmanager
def cluster(workers: int) -> Iterator[None]:
    """Ray for the length of a block, if there are workers: the cluster this process is connected to.

    Without one, RAY_ADDRESS is joined, or a local cluster started.
    """
    if not workers:
        yield
        return
    import ray

    ours = not ray.is_initialized()
    if ours:
        local: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False}
        ray.init(log_to_driver=False, **({} if "RAY_ADDRESS" in os.environ else local))
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def in_order(
    make: Callable[[], Callable[..., Result]],
    arguments: Iterable[tuple[Any, ...]],
    *,
    workers: int,
    gpus: float = 0.0,
) -> Iterator[Result]:
    """What the function that `make` gives says to every tuple of arguments, in order.

    With 0 workers it is called here. Otherwise so many Ray actors, and no more than there are CPUs, make one
    each and have at most two calls waiting; an actor whose process or node dies is made again and its calls
    repeated, which the function must bear.
    """
    if not workers:
        function = make()
        yield from (function(*one) for one in arguments)
        return
    import ray

    actor: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=-1)(_Worker)
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    workers = max(1, min(workers, int(resources.get("CPU", 1))))  # more would wait for ever
    actors = [actor.remote(make) for _ in range(workers)]
    pending: deque[Any] = deque()
    for number, one in enumerate(arguments):
        if len(pending) == 2 * workers:
            yield ray.get(pending.popleft())
        pending.append(actors[number % workers].call.remote(*one))
    while pending:
        yield ray.get(pending.popleft())


class _Worker:
    def __init__(self, make: Callable[[], Callable[..., Any]]) -> None:
        self._function = make()

    def call(self, *arguments: Any) -> Any:
        return self._function(*arguments)
