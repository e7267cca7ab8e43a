"""Evaluating actors on Ray: tasks in, results out, whatever dies on the way.

In: the tasks of a label. Out: each task with its result, in any order. An actor holds one model. If it dies,
its task is given to a new one; a chunk of questions that actors died with is split, and a question that
actors died with alone is refused. What a task does is in tasks.py.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from pipeline.base.config import ModelConfig
from pipeline.base.inference_config import ActorsConfig
from pipeline.evaluation.predictions import Prediction, refused_prediction, to_table
from pipeline.evaluation.store import ACTOR_DIED
from pipeline.evaluation.tasks import Chunk, Task, TaskResult, Worker
from pipeline.runtime.actor_names import ActorNames
from tools_service.base.errors import ToolformerError
from tools_service.tools.client import ToolClient

logger = logging.getLogger(__name__)

MAX_CRASHES = 2
"""Crashes tolerated per chunk and per question; a single crash may be a hardware fault."""
_MAX_STARTS = 3  # crashes tolerated while a model is loaded
_MAX_REFUSED = 20  # questions that their actors died with
_DIED = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.WorkerCrashedError)


class ActorError(ToolformerError):
    """Actors die again and again. What is stored stays, and the same command goes on."""


class EvaluationActor:
    """A process with one model."""

    def __init__(self, cpus: float) -> None:
        import torch

        # More threads than reserved CPUs would take CPU time from other actors.
        torch.set_num_threads(max(1, int(cpus)))
        self._worker = Worker()
        self._model, self._tasks = "no model", 0

    def __repr__(self) -> str:
        return f"EvaluationActor({self._model}, {self._tasks} tasks)"

    def use(self, model: ModelConfig, tools: ToolClient) -> None:
        """Load the model of the next tasks."""
        self._worker.use(model, tools)
        self._model = model.path

    def run(self, task: Task) -> Any:
        """The result of a task; predictions as a table, which any process can read."""
        result = self._worker.run(task)
        self._tasks += 1
        return to_table(result) if isinstance(result, list) else result


class ActorPool:
    """At most `size` evaluating actors, which start when there is work for them."""

    def __init__(self, config: ActorsConfig, size: int, actor: type[Any] = EvaluationActor) -> None:
        self._config, self._size = config, size
        self._class: Any = ray.remote(
            num_cpus=config.cpus_per_actor, num_gpus=config.gpus_per_actor, max_restarts=0
        )(actor)
        self._names = ActorNames("evaluator", "evaluate")
        self._actors: dict[int, Any] = {}
        self._settings: dict[int, tuple[ModelConfig, ToolClient]] = {}
        self._crashes: Counter[str] = Counter()
        self._refused = 0

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()

    def results(
        self, model: ModelConfig, tools: ToolClient, tasks: Sequence[Task]
    ) -> Iterator[tuple[Task, TaskResult]]:
        """Each task with its result as soon as it is there; a split chunk comes in parts.

        Raises ActorError, and the errors of a task.
        """
        settings = model.placed(self._config.gpus_per_actor), tools
        self._crashes.clear()
        waiting, running = deque(tasks), dict[Any, tuple[int, Task | None]]()
        while waiting or running:
            busy = {number for number, _ in running.values()}
            for number in range(self._size):
                if number not in busy and waiting:
                    reference, task = self._begin(number, settings, waiting)
                    running[reference] = number, task
            [ready], _ = ray.wait(list(running), num_returns=1)
            number, task = running.pop(ready)
            try:
                result = ray.get(ready)
            except _DIED as error:
                yield from self._crashed(number, task, waiting, str(error))
                continue
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, ToolformerError):
                    raise error.cause from None
                if not isinstance(task, Chunk):
                    raise
                # The process may be unusable now: a CUDA error stays.
                yield from self._crashed(number, task, waiting, str(error.cause))
                continue
            if isinstance(task, Chunk):
                rows = zip(result.to_pylist(), task.questions, strict=True)
                yield task, [Prediction.from_row(row, question) for row, question in rows]
            elif task is not None:
                yield task, result

    def _begin(
        self, number: int, settings: tuple[ModelConfig, ToolClient], waiting: deque[Task]
    ) -> tuple[Any, Task | None]:
        """Give an idle actor the next task, or the model that it needs first."""
        if number not in self._actors:
            self._actors[number] = self._class.options(**self._names()).remote(self._config.cpus_per_actor)
        actor = self._actors[number]
        if self._settings.get(number) != settings:
            self._settings[number] = settings
            return actor.use.remote(*settings), None
        task = waiting.popleft()
        return actor.run.remote(task), task

    def _crashed(
        self, number: int, task: Task | None, waiting: deque[Task], error: str
    ) -> Iterator[tuple[Task, TaskResult]]:
        """Forget an actor; try its task again, split it, or refuse its question."""
        ray.kill(self._actors.pop(number))
        self._settings.pop(number, None)
        key = _name(task)
        self._crashes[key] += 1
        crashes = self._crashes[key]
        logger.warning("an actor died (%s): %s", key, error.partition("\n")[0])
        if not isinstance(task, Chunk):
            if crashes >= _MAX_STARTS:
                raise ActorError(
                    f"evaluating actors died {crashes} times ({key}): too little memory? "
                    "The same command goes on"
                )
            if task is not None:
                waiting.appendleft(task)
        elif crashes < MAX_CRASHES:
            waiting.appendleft(task)
        elif len(task.questions) > 1:
            waiting.extendleft(reversed(list(task.alone())))
        else:
            yield task, [self._refuse(task, crashes)]

    def _refuse(self, task: Chunk, crashes: int) -> Prediction:
        [question] = task.questions
        self._refused += 1
        if self._refused > _MAX_REFUSED:
            raise ActorError(
                f"actors died with more than {_MAX_REFUSED} questions, the last {_name(task)}: too little "
                "memory? The same command goes on"
            )
        message = f"the process died {crashes} times, while it decoded this question and nothing else"
        return refused_prediction(task.benchmark, question, ACTOR_DIED, message)


def _name(task: Task | None) -> str:
    if task is None:
        return "loading the model"
    if not isinstance(task, Chunk):
        return "perplexity"
    first, last = task.indices[0] + 1, task.indices[-1] + 1
    return f"{task.benchmark}, question {first}" + f" to {last}" * (last > first)
