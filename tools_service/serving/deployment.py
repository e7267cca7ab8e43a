"""The tools on Ray Serve: an application per tool, reached by handle, shared by a cluster.

`tools_on_ray` builds what the tools need, deploys those that do not run yet with these settings,
gives a client, and at the end stops those that no other job uses (leases.py). A replica holds one
plain tool and answers lists. A replica that hangs reports itself unhealthy, and Serve replaces it.
No HTTP endpoint is opened here (http.py). Serve keeps running: it may serve others.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from ray import serve
from ray.serve.schema import LoggingConfig

from tools_service.base.errors import ToolformerError
from tools_service.config import ToolsConfig
from tools_service.contract.settings import Deployment
from tools_service.contract.tool import DEADLINE, Tool, ToolInput, answer, tool_name
from tools_service.serving.client import ServeTools
from tools_service.serving.leases import Lease, application_name, leased_applications, service_lock
from tools_service.tools.registry import load_tool, prepare_tools, require_available, with_absolute_paths
from tools_service.tools.sanitize import CountTokens, count_words

logger = logging.getLogger(__name__)

Pairs = list[tuple[str | None, str | None]]

# Clients give up a request after one deadline; a request that still runs after two is stuck.
STUCK_AFTER_DEADLINES = 2.0

_POLL_S = 0.1
_ALIVE = ("RUNNING", "UNHEALTHY")  # statuses of Serve; a replica of an unhealthy one is being replaced
_STARTING = ("NOT_STARTED", "DEPLOYING")
_WITHOUT_PROCESS = ("STARTING", "STOPPED")  # states of a replica

QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


class ToolStartError(ToolformerError):
    """A tool's replica cannot start; the message is Ray Serve's."""


class Replica:
    """A tool in one process. Serve runs requests in threads, and `check_health` beside them."""

    def __init__(self, load: Callable[[], Tool], threads: int, stuck_after_s: float) -> None:
        self._tool = load()
        self._slots = threading.BoundedSemaphore(threads)
        self._stuck_after_s = stuck_after_s
        self._request_numbers = itertools.count()
        self._started_at: dict[int, float] = {}  # running requests

    def __call__(self, inputs: list[tuple[str, str | None]], left_s: float) -> Pairs:
        """Answer (text, date) with (result, reason); give up waiting after `left_s` seconds."""
        if not self._slots.acquire(timeout=max(left_s, 0.0)):
            return [(None, DEADLINE)] * len(inputs)
        number = next(self._request_numbers)
        self._started_at[number] = time.monotonic()
        try:
            answers = answer(self._tool, [ToolInput(text, date) for text, date in inputs])
            return [(result.result, result.reason) for result in answers]
        finally:
            del self._started_at[number]
            self._slots.release()

    def check_health(self) -> None:
        """Raise if a request hangs. Serve calls this and then replaces the replica."""
        oldest = min(list(self._started_at.values()), default=time.monotonic())
        if time.monotonic() - oldest > self._stuck_after_s:
            name = tool_name(self._tool)
            raise RuntimeError(f"{name}: a request runs for more than {self._stuck_after_s:.0f} s")


@contextmanager
def tools_on_ray(
    config: ToolsConfig, tools: Iterable[str], count_tokens: CountTokens = count_words
) -> Iterator[ServeTools]:
    """Run the named tools during the block, on the cluster that this process is connected to.

    ToolUnavailableError, before anything starts; ToolStartError if one cannot start.
    """
    with starting_tools(config, tools, count_tokens) as client:
        wait_until_started(client.applications.values())
        yield client


@contextmanager
def starting_tools(
    config: ToolsConfig, tools: Iterable[str], count_tokens: CountTokens = count_words
) -> Iterator[ServeTools]:
    """As `tools_on_ray`, but the block begins while the tools start: see `have_started`."""
    tools = tuple(tools)
    require_available(tools, config)
    config = with_absolute_paths(config)
    with ExitStack() as stack:
        with service_lock(config.service):
            prepare_tools(config, tools)
            applications: dict[str, str] = {tool: application_name(config, tool) for tool in tools}
            stack.enter_context(lease(config.service, applications.values()))
            _start(config, applications)
        yield ServeTools(config, count_tokens, applications)


def wait_until_started(applications: Iterable[str], meanwhile: Callable[[], None] = lambda: None) -> None:
    """Return when all `applications` run; ToolStartError if one cannot start.

    `meanwhile` is called at each look and may raise.
    """
    applications = tuple(applications)
    while not have_started(applications):
        meanwhile()
        time.sleep(_POLL_S)


def have_started(applications: Iterable[str]) -> bool:
    """Whether all `applications` run. ToolStartError if one cannot start, or is not there any more."""
    overviews = serve.status().applications
    statuses = []
    for name in applications:
        if name not in overviews:
            raise ToolStartError(f"the tools could not be started on Ray: {name} was stopped meanwhile")
        statuses.append(overviews[name].status.value)
        if statuses[-1] not in (*_ALIVE, *_STARTING):
            problem = f"{name}: {statuses[-1]}: {overviews[name].message}"
            raise ToolStartError(f"the tools could not be started on Ray: {problem}")
    return all(status in _ALIVE for status in statuses)


def running_replicas(applications: Mapping[str, str]) -> dict[str, int]:
    """Return the replicas of each tool that have started: of one that starts, Serve does not say whether it
    waits for a node. `applications` are named by tool."""
    overviews = serve.status().applications
    numbers = dict.fromkeys(applications, 0)
    for tool, name in applications.items():
        for deployment in overviews[name].deployments.values() if name in overviews else ():
            states = deployment.replica_states.items()
            numbers[tool] += sum(number for state, number in states if state not in _WITHOUT_PROCESS)
    return numbers


@contextmanager
def lease(service: str, applications: Iterable[str]) -> Iterator[None]:
    """Hold a lease on `applications` during the block; then stop those that nobody else leases."""
    lease = Lease(service, applications)
    try:
        yield
    finally:
        lease.release()
        with service_lock(service):
            stop_unused(service)


def _start(config: ToolsConfig, applications: Mapping[str, str]) -> None:
    """Begin to deploy the applications that do not run, and stop those that crashed jobs left behind."""
    stop_unused(config.service)
    running = running_applications(config.service)
    missing = [tool for tool, application in applications.items() if application not in running]
    for tool in sorted(set(applications) - set(missing)):
        logger.info("%s already runs with these settings: sharing %s", tool, applications[tool])
    try:
        deploy({tool: functools.partial(load_tool, tool, config) for tool in missing}, config, applications)
    except RuntimeError as error:  # raised by Serve for what it does not deploy
        raise ToolStartError(f"the tools could not be started on Ray: {error}") from error


def running_applications(service: str) -> set[str]:
    """Return the applications of `service` that answer, or will: another job starts them, or they are
    being replaced."""
    statuses = application_statuses().items()
    alive = {name for name, status in statuses if status in (*_ALIVE, "DEPLOYING")}
    return {name for name in alive if _belongs_to(name, service)}


def application_statuses() -> dict[str, str]:
    """Return Ray Serve's status of each application, of any service."""
    return {name: str(overview.status.value) for name, overview in serve.status().applications.items()}


def stop_unused(service: str) -> None:
    """Delete the applications of `service` that nobody holds a lease on."""
    leased = leased_applications(service)
    unused = [
        name for name in sorted(application_statuses()) if _belongs_to(name, service) and name not in leased
    ]
    for name in unused:  # all begin to stop before one is waited for
        serve.delete(name, _blocking=False)
    for name in unused:
        serve.delete(name)


def _belongs_to(application: str, service: str) -> bool:
    return application.rpartition("-")[0].rpartition("-")[0] == service


def deploy(
    loaders: Mapping[str, Callable[[], Tool]], config: ToolsConfig, applications: Mapping[str, str]
) -> None:
    """Begin to deploy an application per tool, with `loaders` for its replicas."""
    if not loaders:
        return
    serve.start(proxy_location="Disabled", logging_config=QUIET)
    targets = []
    for tool, load in loaders.items():
        deployment = config.of(tool).deployment
        replica = serve.deployment(name=tool, **serve_options(deployment))(Replica)
        bound = replica.bind(load, deployment.threads, STUCK_AFTER_DEADLINES * deployment.deadline_s)
        targets.append(serve.RunTarget(bound, name=applications[tool], route_prefix=None))
    serve.run_many(targets, wait_for_applications_running=False)


def serve_options(deployment: Deployment) -> dict[str, Any]:
    """Return the options of `serve.deployment` for `deployment`."""
    common: dict[str, Any] = {
        "max_ongoing_requests": deployment.max_ongoing_requests,
        "max_queued_requests": deployment.max_queued_requests,
        "ray_actor_options": {"num_cpus": deployment.cpus, "num_gpus": deployment.gpus},
        "health_check_period_s": deployment.health_check_s,
        "health_check_timeout_s": max(deployment.health_check_s, 10.0),
        "graceful_shutdown_timeout_s": 2.0,
        "graceful_shutdown_wait_loop_s": 0.1,
        "logging_config": QUIET,
    }
    if deployment.min_replicas == deployment.max_replicas:
        return common | {"num_replicas": deployment.min_replicas}
    bounds = {"min_replicas", "max_replicas", "target_ongoing_requests"}
    return common | {"autoscaling_config": deployment.model_dump(include=bounds)}
