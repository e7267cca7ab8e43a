"""Where the tasks of an evaluation run: in this process, or on actors of a Ray cluster (ray_executor.py).

In: the tasks of a label and its configuration. Out: each task with its result. Models, tools and Ray start
when the first task needs them; a label whose results are all stored starts nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from pipeline.base.inference_config import EvaluateConfig, GenerateConfig
from pipeline.evaluation.placement import runs_on_ray
from pipeline.evaluation.tasks import Task, TaskResult, Worker
from tools_service.config import ToolsConfig
from tools_service.serving.local import start_local_tools
from tools_service.tools.client import LocalTools, ToolClient


class Executor(Protocol):
    """Runs tasks."""

    def results(
        self, config: GenerateConfig, tools: Collection[str], tasks: Sequence[Task]
    ) -> Iterator[tuple[Task, TaskResult]]:
        """Each task with its result as soon as it is there; `tools` are those that can be called."""
        ...


class LocalExecutor:
    """Runs tasks in this process, one after the other."""

    def __init__(self, client: ToolClient | None = None, worker: Worker | None = None) -> None:
        """`client` has the tools, `worker` a model; by default those of the configuration are loaded."""
        self._client, self._worker = client, worker or Worker()
        self._started: tuple[ToolsConfig, frozenset[str], LocalTools] | None = None

    def results(
        self, config: GenerateConfig, tools: Collection[str], tasks: Sequence[Task]
    ) -> Iterator[tuple[Task, TaskResult]]:
        """Each task with its result, in order."""
        if tasks:
            self._worker.use(config.model, self._client or self._start(config.tools, frozenset(tools)))
        for task in tasks:
            yield task, self._worker.run(task)

    def _start(self, config: ToolsConfig, tools: frozenset[str]) -> LocalTools:
        """The tools, which stay from label to label."""
        if self._started is None or self._started[0] != config or not tools <= self._started[1]:
            self._started = config, tools, start_local_tools(config, sorted(tools))
        return self._started[2]


@contextmanager
def executor(configs: Sequence[EvaluateConfig], client: ToolClient | None) -> Iterator[Executor]:
    """The executor of one command: Ray's actors, or this process.

    Without `ray.actors`: this process if there is no GPU or a caller brings the tools, because then starting
    Ray, actors and replicas takes longer than it saves (docs/decisions/0034-evaluation-on-ray.md).
    """
    if client is not None or not configs or not runs_on_ray(configs):
        yield LocalExecutor(client)
        return
    from pipeline.evaluation.ray_executor import RayExecutor

    with RayExecutor(configs) as on_ray:
        yield on_ray
