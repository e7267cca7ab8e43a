"""Runs tasks of lm-evaluation-harness on one of our models.

In: a HarnessConfig. Out: the harness's results, and its result file (docs/harness.md). The tasks are loaded
and checked before the model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, make_table

from pipeline.base.harness_config import HarnessConfig
from pipeline.engine.errors import first_line
from pipeline.harness.errors import HarnessError, HarnessRunError
from pipeline.harness.model import ToolformerLM, calls_configured, likelihoods_refused
from pipeline.inference.generation import Generation
from pipeline.storage.kinds import HARNESS
from tools_service.base.errors import ToolformerError
from tools_service.base.files import atomic_write, writing
from tools_service.base.locks import output_lock
from tools_service.base.ownership import require_own


@dataclass(frozen=True, slots=True)
class HarnessRun:
    """The harness's results, and what the model generated on the way."""

    results: dict[str, Any]
    generations: tuple[Generation, ...]
    truncated_prompts: int

    def tables(self) -> str:
        """The harness's tables of tasks and groups."""
        tables = [make_table(self.results)]
        if self.results.get("groups"):
            tables.append(make_table(self.results, "groups"))
        return "\n".join(str(table) for table in tables)


def run_tasks(config: HarnessConfig, tasks: TaskManager | None = None) -> HarnessRun:
    """Evaluate the model of `config` on its tasks and write `config.output`.

    Raises HarnessError for tasks that do not exist, cannot be loaded or need what the model cannot do,
    ModelError, and NotOwnError or OutputError for the output.
    """
    if not config.tasks:
        raise HarnessError("--tasks: name at least one, for example --tasks wikitext")
    if config.include_path is not None and not config.include_path.is_dir():
        raise HarnessError(f"--include-path: {config.include_path} is not a folder")
    require_own(config.output, HARNESS)
    tasks = tasks or TaskManager(include_path=config.include_path)
    likelihoods = _require_tasks(tasks, config.tasks)
    if likelihoods and calls_configured(config) and not config.likelihoods_without_calls:
        raise HarnessError(likelihoods_refused(", ".join(likelihoods)))
    model = ToolformerLM(config)
    results = _evaluate(model, tasks, config)
    text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False) + "\n"
    with writing(config.output):
        config.output.parent.mkdir(parents=True, exist_ok=True)
    with output_lock(config.output, wait=True):
        require_own(config.output, HARNESS)
        atomic_write(config.output, text)
    return HarnessRun(results, tuple(model.generations), model.truncated_prompts)


def _require_tasks(tasks: TaskManager, names: Sequence[str]) -> list[str]:
    """The tasks among `names` that ask for likelihoods. Raises HarnessError."""
    unknown = [name for name in names if name not in tasks.task_index]
    if unknown:
        raise HarnessError(
            f"--tasks: the harness has no {', '.join(unknown)}; `lm_eval ls tasks` lists those that it has, "
            "--include-path adds your own"
        )
    found: dict[str, Any] = {}
    for name in names:
        try:
            found |= tasks.load([name])["tasks"]
        # Tasks bring code of their own, and the libraries that load data sets raise what they like.
        except Exception as error:
            raise HarnessError(f"--tasks: {name} cannot be loaded. {first_line(error)}") from error
    return sorted(name for name, task in found.items() if task.OUTPUT_TYPE != "generate_until")


def _evaluate(model: ToolformerLM, tasks: TaskManager, config: HarnessConfig) -> dict[str, Any]:
    limit = int(config.limit) if config.limit and config.limit >= 1 else config.limit
    try:
        results: dict[str, Any] = lm_eval.simple_evaluate(
            model=model,
            tasks=list(config.tasks),
            task_manager=tasks,
            num_fewshot=config.num_fewshot,
            limit=limit,
            batch_size=config.batch_size,
            log_samples=config.log_samples,
        )
    except ToolformerError:
        raise
    # As above: a task's own code reads its documents and scores the answers.
    except Exception as error:
        message = f"{', '.join(config.tasks)}: the harness failed. {first_line(error)}"
        raise HarnessRunError(message) from error
    return results
