"""The command `harness`: tasks of lm-evaluation-harness, and its table.

In: `HarnessConfig`. Out: the table on standard output, the result file. lm_eval is an optional requirement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.base.harness_config import HarnessConfig
from tools_service.base.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.harness.run import HarnessRun


def harness(config: HarnessConfig) -> HarnessRun:
    """Run the tasks and print the harness's table. Raises ConfigurationError without lm_eval."""
    try:
        from pipeline.harness.run import run_tasks
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "lm_eval":
            raise
        raise ConfigurationError(
            "lm-evaluation-harness is not installed; install it with: pip install 'lm_eval>=0.4.13,<0.5'"
        ) from error

    run = run_tasks(config)
    print(run.tables())
    refused = sum(generation.refused is not None for generation in run.generations)
    for count, problem in (
        (run.truncated_prompts, "were longer than the context and lost their beginning"),
        (refused, "could not be continued; their answer is empty"),
    ):
        if count:
            print(f"! {count:,} of {len(run.generations):,} prompts {problem}")
    return run
