"""The tools on Ray Serve: one application per tool, reachable by handle only, shared by the whole cluster.

`tools_on_ray` builds what the tools need, deploys those that do not run yet as the configuration wants them,
gives the client, and at the end stops those that no other job uses (sharing.py). Every replica holds one
plain tool (contract.py) and answers lists. A replica whose work hangs reports itself unhealthy, and Serve
replaces it. No HTTP endpoint is opened here (ingress.py). Serve itself keeps running on a cluster that was
joined: it may be serving others.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray import serve
from ray.serve.schema import LoggingConfig

from tools_service.base.errors import ToolformerError
from tools_service.config import Deployment, ToolsConfig
from tools_service.serving.client import ServeTools
from tools_service.serving.leases import Lease, application, exclusively, leased
from tools_service.tools.contract import DEADLINE, Tool, ToolInput, ToolName, answer
from tools_service.tools.registry import absolute, load_tool, prepare, require_available
from tools_service.tools.sanitize import CountTokens, count_words

logger = logging.getLogger(__name__)

Pairs = list[tuple[str | None, str | None]]

# Clients gave a request up after one deadline; one that is still worked on after two is stuck.
STUCK_AFTER_DEADLINES = 2.0

_QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


class ToolStartError(ToolformerError):
    """A tool's replica cannot start; the message is Ray Serve's."""


class Replica:
    """One tool in one process. Serve runs requests in threads, and `check_health` beside them."""

    def __init__(self, load: Callable[[], Tool], threads: int, stuck_after_s: float) -> None:
        self._tool = load()
        self._slots = threading.BoundedSemaphore(threads)
        self._stuck_after_s = stuck_after_s
        self._numbers = itertools.count()
        self._began: dict[int, float] = {}  # requests at work

    def __call__(self, inputs: list[tuple[str, str | None]], left_s: float) -> Pairs:
        """Answer one list of (text, date) with (result, reason); client.ServeTools speaks the same pairs.

        Who waits longer than the caller does is not worked on: the caller is gone.
        """
        if not self._slots.acquire(timeout=max(left_s, 0.0)):
            return [(None, DEADLINE)] * len(inputs)
        number = next(self._numbers)
        self._began[number] = time.monotonic()
        try:
            answers = answer(self._tool, [ToolInput(text, date) for text, date in inputs])
            return [(one.result, one.reason) for one in answers]
        finally:
            del self._began[number]
            self._slots.release()

    def check_health(self) -> None:
        """Called by Serve; raising has this replica replaced."""
        oldest = min(list(self._began.values()), default=time.monotonic())
        if time.monotonic() - oldest > self._stuck_after_s:
            raise RuntimeError(f"{self._tool.name}: a request runs for more than {self._stuck_after_s:.0f} s")


@contextmanager
def tools_on_ray(
    config: ToolsConfig, tools: Iterable[ToolName], count_tokens: CountTokens = count_words
) -> Iterator[ServeTools]:
    """The named tools, answering, for the length of the block, on the cluster this process is connected to.

    ToolUnavailableError if one cannot be had, before anything is started; ToolStartError if one cannot
    start.
    """
    tools = tuple(tools)
    require_available(tools, config)
    config = absolute(config)
    with exclusively(config.service):
        prepare(tools, config)
    names: dict[str, str] = {tool: application(config, tool) for tool in tools}
    with _used(config.service, names.values()):
        with exclusively(config.service):
            _start(config, names)
        yield ServeTools(config, count_tokens, names)


@contextmanager
def _used(service: str, applications: Iterable[str]) -> Iterator[None]:
    """Keep `applications` for the block; then stop those that nobody else keeps."""
    lease = Lease(service, applications)
    try:
        yield
    finally:
        lease.release()
        with exclusively(service):
            stop_unused(service)


def _start(config: ToolsConfig, names: Mapping[str, str]) -> None:
    """Deploy what does not run; clear away what crashed jobs left."""
    stop_unused(config.service)
    running = running_applications(config.service)
    missing = [tool for tool, name in names.items() if name not in running]
    for tool in sorted(set(names) - set(missing)):
        logger.info("%s runs already as it is wanted: sharing %s", tool, names[tool])
    loaders: dict[str, Callable[[], Tool]] = {
        tool: functools.partial(load_tool, tool, config) for tool in missing
    }
    try:
        deploy(loaders, config, names)
    except RuntimeError as error:  # Serve's word for a replica that cannot start
        raise ToolStartError(f"the tools could not be started on Ray: {error}") from error


def running_applications(service: str) -> set[str]:
    """The applications of `service` that answer, or will when Serve has replaced their replicas."""
    found = serve.status().applications
    return {name for name in found if _ours(name, service) and found[name].status in ("RUNNING", "UNHEALTHY")}


def stop_unused(service: str) -> None:
    """Take down the applications of `service` that nobody holds a lease on."""
    used = leased(service)
    for name in sorted(serve.status().applications):
        if _ours(name, service) and name not in used:
            serve.delete(name)


def _ours(name: str, service: str) -> bool:
    return name.rpartition("-")[0].rpartition("-")[0] == service


def deploy(
    loaders: Mapping[str, Callable[[], Tool]], config: ToolsConfig, applications: Mapping[str, str]
) -> None:
    """One Serve application per tool; `loaders` make the tools in their replicas. Blocks until all are
    ready."""
    if not loaders:
        return
    serve.start(proxy_location="Disabled", logging_config=_QUIET)
    serve.run_many(
        [
            _target(tool, load, config.of(tool).deployment, applications[tool])
            for tool, load in loaders.items()
        ]
    )


def _target(tool: str, load: Callable[[], Tool], deployment: Deployment, name: str) -> serve.RunTarget:
    replica = serve.deployment(name=tool, **options(deployment))(Replica)
    stuck_after_s = STUCK_AFTER_DEADLINES * deployment.deadline_s
    return serve.RunTarget(
        replica.bind(load, deployment.threads, stuck_after_s), name=name, route_prefix=None
    )


def options(deployment: Deployment) -> dict[str, Any]:
    """Ray Serve's words for `deployment`."""
    common: dict[str, Any] = {
        "max_ongoing_requests": deployment.max_ongoing_requests,
        "max_queued_requests": deployment.max_queued_requests,
        "ray_actor_options": {"num_cpus": deployment.cpus, "num_gpus": deployment.gpus},
        "health_check_period_s": deployment.health_check_s,
        "health_check_timeout_s": max(deployment.health_check_s, 10.0),
        "graceful_shutdown_timeout_s": 2.0,
        "graceful_shutdown_wait_loop_s": 0.1,
        "logging_config": _QUIET,
    }
    if deployment.min_replicas == deployment.max_replicas:
        return common | {"num_replicas": deployment.min_replicas}
    bounds = {
        "min_replicas": deployment.min_replicas,
        "max_replicas": deployment.max_replicas,
        "target_ongoing_requests": deployment.target_ongoing_requests,
    }
    return common | {"autoscaling_config": bounds}
