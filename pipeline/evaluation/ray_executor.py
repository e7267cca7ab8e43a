"""Runs the tasks of an evaluation on a Ray cluster: a connection, tools on Ray Serve, a pool of actors.

In: tasks. Out: each task with its result. Everything starts with the first task, and ends with the block.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

from pipeline.base.inference_config import EvaluateConfig, GenerateConfig
from pipeline.evaluation.actors import ActorPool, EvaluationActor
from pipeline.evaluation.tasks import Task, TaskResult
from pipeline.runtime.connection import ray_connection
from tools_service.config import ToolsConfig
from tools_service.runtime.resources import ProcessRequest, ResourceRequest, live_nodes, room_for
from tools_service.serving.client import ServeTools
from tools_service.serving.deployment import tools_on_ray
from tools_service.serving.processes import tool_processes
from tools_service.tools.client import ToolClient

logger = logging.getLogger(__name__)


class RayExecutor:
    """The actors of one command; `with` ends what it started."""

    def __init__(
        self, configs: Sequence[EvaluateConfig], actor: type[EvaluationActor] = EvaluationActor
    ) -> None:
        """`configs` are those of all labels; the resources of the first one count."""
        self._configs, self._actor, self._stack = configs, actor, ExitStack()
        self._pool: ActorPool | None = None
        self._started: dict[tuple[str, frozenset[str]], ToolClient] = {}

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def results(
        self, config: GenerateConfig, tools: Collection[str], tasks: Sequence[Task]
    ) -> Iterator[tuple[Task, TaskResult]]:
        """Each task with its result as soon as it is there."""
        if not tasks:
            return
        if self._pool is None:
            self._pool = self._start_pool()
        client = self._start_tools(config.tools, frozenset(tools))
        yield from self._pool.results(config.model.with_absolute_path(), client, tasks)

    def _start_pool(self) -> ActorPool:
        """Connect to Ray; one actor for each GPU that the tools leave, if no number is given."""
        resources, request = self._configs[0].ray, resource_request(self._configs)
        self._stack.enter_context(ray_connection(request, resources.address))
        actors, *replicas = request.processes
        size = actors.count
        if resources.actors is None and resources.gpus_per_actor:
            nodes = live_nodes()
            most = int(sum(node.gpus for node in nodes) / actors.gpus + 1e-6)  # 0.3 / 0.1 < 3
            size = max(1, room_for(replace(actors, count=most), replicas, nodes))
        logger.info("%d evaluating actors", size)
        pool = ActorPool(resources, size, self._actor)
        self._stack.callback(pool.close)
        return pool

    def _start_tools(self, config: ToolsConfig, tools: frozenset[str]) -> ToolClient:
        """The tools, which stay from label to label."""
        if not tools:
            return ServeTools(config)  # nothing can be called
        key = config.model_dump_json(), tools
        if key not in self._started:
            self._started[key] = self._stack.enter_context(tools_on_ray(config, sorted(tools)))
        return self._started[key]


def resource_request(configs: Sequence[EvaluateConfig]) -> ResourceRequest:
    """The actors, one if no number is given, and the tools of all labels."""
    replicas = {
        each.of: each
        for generation in (config.generation for config in configs)
        if not generation.calls_disabled
        for each in tool_processes(
            generation.tools,
            [tool for tool in generation.tools.specs if tool not in generation.tools_off],
            "generation.tools",
        )
    }
    resources = configs[0].ray
    actors = ProcessRequest(
        of="evaluating actor",
        count=resources.actors or 1,
        cpus=resources.cpus_per_actor,
        gpus=resources.gpus_per_actor,
        fewer_cpus="lower ray.cpus_per_actor",
        fewer_gpus="lower ray.gpus_per_actor (0: on the CPU)",
        fewer="lower ray.actors (0: in this process)",
    )
    return ResourceRequest(
        processes=(actors, *replicas.values()), wait_s=resources.wait_s, wait_option="ray.wait_s"
    )
