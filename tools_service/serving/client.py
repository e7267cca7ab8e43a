"""The client of tools that run on Ray Serve (deployment.py deploys them)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

from tools_service.config import ToolsConfig
from tools_service.serving.leases import application
from tools_service.tools.client import CachingClient, without_result
from tools_service.tools.contract import (
    DEADLINE,
    OVERLOADED,
    REPLICA_DIED,
    TOOL_FAILED,
    TOOL_NAMES,
    UNREACHABLE,
    ToolInput,
    ToolResult,
)
from tools_service.tools.sanitize import CountTokens, count_words

MAX_DEATHS = 2  # replicas lost under one list before it is taken apart
LIST_PARTS = 16  # in so many parts; every lost replica may be a large model to load again
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 2.0


class ServeTools(CachingClient):
    """Tools on Ray Serve, as service.py deployed them. Small to pickle: each process finds its own
    handles."""

    def __init__(
        self,
        config: ToolsConfig,
        count_tokens: CountTokens = count_words,
        applications: Mapping[str, str] | None = None,
    ) -> None:
        """`applications` names those to ask, by tool; without it, those that run tools as `config` wants
        them."""
        import ray.serve  # noqa: F401  seconds on a busy machine: not within the first call's deadline

        super().__init__(config, count_tokens)
        self.applications = applications or {tool: application(config, tool) for tool in TOOL_NAMES}
        self._handles: dict[str, Any] = {}

    def __reduce__(self) -> tuple[type[ServeTools], tuple[Any, ...]]:
        return ServeTools, (self._config, self._count_tokens, self.applications)

    async def _ask(self, tool: str, inputs: list[ToolInput], deadline: float) -> list[ToolResult]:
        if tool not in self.applications:
            return without_result(inputs, UNREACHABLE)
        return await self._ask_until(tool, inputs, deadline, MAX_DEATHS)

    async def _ask_until(
        self, tool: str, inputs: list[ToolInput], deadline: float, deaths: int
    ) -> list[ToolResult]:
        """Send one list until it is answered, or the deadline is near, or `deaths` replicas died under it.

        Then its parts are sent one after the other, down to single calls: what kills its replica costs
        itself its result. So one such call among LIST_PARTS² costs five replicas.
        """
        from ray.exceptions import RayActorError, RayError
        from ray.serve.exceptions import (
            BackPressureError,
            DeploymentUnavailableError,
            RayServeException,
            ReplicaUnavailableError,
        )

        wait_s = FIRST_WAIT_S
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._send(tool, inputs, deadline)
            except TimeoutError:
                return without_result(inputs, DEADLINE)
            except BackPressureError:
                reason = OVERLOADED
            except (RayActorError, ReplicaUnavailableError, DeploymentUnavailableError):
                reason, deaths = REPLICA_DIED, deaths - 1
            except RayServeException:
                return without_result(inputs, UNREACHABLE)
            except RayError:
                return without_result(inputs, TOOL_FAILED)
            if not deaths and len(inputs) > 1:
                return await self._ask_parts(tool, inputs, deadline)
            pause_s = wait_s * random.uniform(0.5, 1.5)
            if not deaths or asyncio.get_running_loop().time() + pause_s >= deadline:
                return without_result(inputs, reason)
            await asyncio.sleep(pause_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _ask_parts(self, tool: str, inputs: list[ToolInput], deadline: float) -> list[ToolResult]:
        """One after the other, so that no part dies of another; what is answered stays answered."""
        size = -(-len(inputs) // LIST_PARTS)
        answers: list[ToolResult] = []
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            answers += await self._ask_until(tool, part, deadline, 1 if size > 1 else 2)
        return answers

    async def _send(self, tool: str, inputs: list[ToolInput], deadline: float) -> list[ToolResult]:
        if tool not in self._handles:
            self._handles[tool] = await asyncio.to_thread(_handle, self.applications[tool])
        left_s = deadline - asyncio.get_running_loop().time()
        # Pairs, not our dataclasses: those cost more to pickle than the calculator takes to answer.
        response = self._handles[tool].remote([(one.text, one.date) for one in inputs], left_s)
        try:
            return [ToolResult(result, reason) for result, reason in await response]
        except asyncio.CancelledError:
            response.cancel()
            raise


def _handle(name: str) -> Any:
    from ray import serve

    return serve.get_app_handle(name)
