"""How many calls a tool answers a second, measured for tools that nothing is known of.

In: a tool and the configuration of a plan. Out: calls per second of one process, from the calls that the
tool's prompt demonstrates, in lists of LIST_SIZE for about a second. The tool starts in this process.
"""

from __future__ import annotations

import time

from pipeline.base.config import PlanConfig
from tools_service.contract.tool import ToolInput, answer
from tools_service.syntax.calls import split_calls
from tools_service.syntax.prompts import load_prompt
from tools_service.tools.registry import load_tool, prepare_tools, require_available

LIST_SIZE = 64
_SECONDS = 1.0


def measure_calls_per_s(tool: str, config: PlanConfig) -> float:
    """Calls per second of one thread. Raises ToolUnavailableError for a tool that cannot start."""
    require_available([tool], config.tools)
    prepare_tools(config.tools, [tool])
    loaded = load_tool(tool, config.tools)
    inputs = demonstrated_inputs(tool, config)
    calls = [ToolInput(inputs[number % len(inputs)]) for number in range(LIST_SIZE)]
    answer(loaded, calls[:1])  # the first call may load something
    started, answered = time.monotonic(), 0
    while (elapsed := time.monotonic() - started) < _SECONDS:
        answer(loaded, calls)
        answered += len(calls)
    return answered / elapsed


def demonstrated_inputs(tool: str, config: PlanConfig) -> list[str]:
    """The inputs of the calls in the tool's prompt."""
    prompt = load_prompt(tool, config.method.prompts, config.method.of(tool).prompt)
    head = f" [{tool}("
    calls = [part for part in split_calls(prompt.prefix, [tool]) if part.startswith(head)]
    return [call.removeprefix(head).partition(")")[0] for call in calls] or [""]
