"""Maps a function over a stream of arguments, in this process or in actors on Ray.

Results come in order, and memory is bounded. Ray is imported only if there are workers.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

Result = TypeVar("Result")

_CALLS_PER_WORKER = 2  # one runs, one waits


def ray_for_workers(workers: int) -> AbstractContextManager[Any]:
    """Connect to Ray, if there are workers: to RAY_ADDRESS or to a new local cluster."""
    if not workers:
        return nullcontext()
    import ray

    if ray.is_initialized():
        return nullcontext()
    from tools_service.runtime.address import chosen_address
    from tools_service.runtime.connection import connect

    context: AbstractContextManager[Any] = connect(*chosen_address(None, ""), cpus=workers, dashboard=False)
    return context


def map_in_order(
    make_function: Callable[[], Callable[..., Result]],
    arguments: Iterable[tuple[Any, ...]],
    *,
    workers: int,
    gpus: float = 0.0,
) -> Iterator[Result]:
    """Yield the function's result for every tuple of arguments, in order.

    With 0 workers everything runs here. Otherwise each of `workers` Ray actors (at most one per
    CPU of a node) makes its own function. An actor that dies is started again, and its calls are repeated.
    """
    if not workers:
        function = make_function()
        yield from (function(*call) for call in arguments)
        return
    import ray

    from tools_service.runtime.resources import (
        ProcessRequest,
        ResourceRequest,
        live_nodes,
        require_resources,
        room_for,
    )

    worker = ProcessRequest(of="indexing worker", cpus=1, gpus=gpus, count=workers, least=1)
    require_resources(ResourceRequest(processes=(worker,)))
    workers = max(1, room_for(worker, (), live_nodes()))  # others would wait for a CPU for ever
    actor_class: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=-1)(
        IndexBuilder
    )
    run = uuid.uuid4().hex[:6]
    names = [f"index builder {number} ({run})" for number in range(1, workers + 1)]
    actors = [actor_class.options(name=name).remote(make_function) for name in names]
    pending: deque[Any] = deque()
    for number, call in enumerate(arguments):
        if len(pending) == _CALLS_PER_WORKER * workers:
            yield ray.get(pending.popleft())
        pending.append(actors[number % workers].call.remote(*call))
    while pending:
        yield ray.get(pending.popleft())


class IndexBuilder:
    """A process with its own function. Ray's dashboard shows the name of the class."""

    def __init__(self, make_function: Callable[[], Callable[..., Any]]) -> None:
        self._function, self._calls = make_function(), 0

    def __repr__(self) -> str:
        return f"IndexBuilder({self._calls} calls)"

    def call(self, *arguments: Any) -> Any:
        """The function's result."""
        self._calls += 1
        return self._function(*arguments)
