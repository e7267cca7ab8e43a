"""The tools on Ray Serve: one application per tool, reachable by handle only, shared by the whole cluster.

`start_tools` builds what the tools need, deploys them and returns the client; `stop_tools` takes them down;
`tools_on_ray` does both round a block. Every replica holds one plain tool (contract.py) and answers lists.
A replica whose work hangs reports itself unhealthy, and Serve replaces it. No HTTP endpoint is opened.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray import serve
from ray.serve.schema import LoggingConfig

from pipeline.errors import PipelineError
from pipeline.records import ToolName
from tools_service.client import ServeTools, application
from tools_service.config import ToolsConfig
from tools_service.contract import Tool, ToolInput, answer
from tools_service.sanitize import CountTokens, count_words
from tools_service.toolbox import absolute, load_tool, prepare, require_available

# Clients gave a request up after one deadline; one that still runs after two is stuck.
STUCK_AFTER_DEADLINES = 2.0

_QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


class ToolStartError(PipelineError):
    """A tool's replica cannot start; the message is Ray Serve's."""


class Replica:
    """One tool in one process. Serve runs requests in threads, and `check_health` beside them."""

    def __init__(self, load: Callable[[], Tool], stuck_after_s: float) -> None:
        self._tool = load()
        self._stuck_after_s = stuck_after_s
        self._numbers = itertools.count()
        self._began: dict[int, float] = {}  # requests at work

    def __call__(self, inputs: list[tuple[str, str | None]]) -> list[tuple[str | None, str | None]]:
        """Answer one list of (text, date) with (result, reason); client.ServeTools speaks the same pairs."""
        number = next(self._numbers)
        self._began[number] = time.monotonic()
        try:
            answers = answer(self._tool, [ToolInput(text, date) for text, date in inputs])
            return [(one.result, one.reason) for one in answers]
        finally:
            del self._began[number]

    def check_health(self) -> None:
        """Called by Serve; raising has this replica replaced."""
        oldest = min(list(self._began.values()), default=time.monotonic())
        if time.monotonic() - oldest > self._stuck_after_s:
            raise RuntimeError(f"{self._tool.name}: a request runs for more than {self._stuck_after_s:.0f} s")


def start_tools(
    config: ToolsConfig, tools: Iterable[ToolName], count_tokens: CountTokens = count_words
) -> ServeTools:
    """Deploy the named tools on the Ray cluster this process is connected to, and wait until they answer.

    ToolUnavailableError if one cannot be had, before anything is started.
    """
    tools = tuple(tools)
    require_available(tools, config)
    config = absolute(config)
    prepare(tools, config)
    try:
        deploy({tool: functools.partial(load_tool, tool, config) for tool in tools}, config)
    except RuntimeError as error:  # Serve's word for a replica that cannot start
        stop_tools(config, tools)
        raise ToolStartError(f"the tools could not be started on Ray: {error}") from error
    return ServeTools(config, count_tokens)


def stop_tools(config: ToolsConfig, tools: Iterable[str]) -> None:
    """Take the named tools down, and Serve with them unless it runs something else."""
    ours = {application(config, tool) for tool in tools}
    running = set(serve.status().applications)
    if running <= ours:
        serve.shutdown()  # type: ignore[no-untyped-call]
    else:
        for name in sorted(running & ours):
            serve.delete(name)


@contextmanager
def tools_on_ray(
    config: ToolsConfig, tools: Iterable[ToolName], count_tokens: CountTokens = count_words
) -> Iterator[ServeTools]:
    """`start_tools`, and `stop_tools` at the end of the block, whatever happens in it."""
    tools = tuple(tools)
    client = start_tools(config, tools, count_tokens)
    try:
        yield client
    finally:
        stop_tools(config, tools)


def deploy(loaders: Mapping[str, Callable[[], Tool]], config: ToolsConfig) -> None:
    """One Serve application per tool; `loaders` make the tools in their replicas. Blocks until all are
    ready."""
    serve.start(proxy_location="Disabled", logging_config=_QUIET)
    serve.run_many([_target(tool, load, config) for tool, load in loaders.items()])


def _target(tool: str, load: Callable[[], Tool], config: ToolsConfig) -> serve.RunTarget:
    deployment = config.of(tool).deployment
    options: dict[str, Any] = {
        "name": tool,
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
        options["num_replicas"] = deployment.min_replicas
    else:
        options["autoscaling_config"] = {
            "min_replicas": deployment.min_replicas,
            "max_replicas": deployment.max_replicas,
            "target_ongoing_requests": deployment.target_ongoing_requests,
        }
    replica = serve.deployment(**options)(Replica)
    return serve.RunTarget(
        replica.bind(load, STUCK_AFTER_DEADLINES * deployment.deadline_s),
        name=application(config, tool),
        route_prefix=None,
    )
