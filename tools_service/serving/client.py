"""The client of tools on Ray Serve, which deployment.py deploys.

In: lists of inputs. Out: results or reasons, before the deadline. It retries overloaded tools and
lost replicas.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)

from tools_service.config import ToolsConfig
from tools_service.contract.tool import (
    DEADLINE,
    OVERLOADED,
    REPLICA_DIED,
    TOOL_FAILED,
    UNREACHABLE,
    ToolInput,
    ToolResult,
    without_result,
)
from tools_service.serving.leases import application_name
from tools_service.tools.client import CachingClient
from tools_service.tools.sanitize import CountTokens, count_words

MAX_CRASHES = 2  # replicas lost with a list before the list is split
SPLIT_INTO = 16  # parts; every lost replica may mean loading a large model again
MIN_BACKOFF_S = 0.05
MAX_BACKOFF_S = 2.0


class ServeTools(CachingClient):
    """Tools on Ray Serve. A pickled client is small: each process gets its own handles."""

    def __init__(
        self,
        config: ToolsConfig,
        count_tokens: CountTokens = count_words,
        applications: Mapping[str, str] | None = None,
    ) -> None:
        """`applications` are names by tool; by default those that `config` leads to."""
        super().__init__(config, count_tokens)
        self.applications: Mapping[str, str] = applications or {}
        self._handles: dict[str, Any] = {}

    def __reduce__(self) -> tuple[type[ServeTools], tuple[Any, ...]]:
        return ServeTools, (self._config, self._count_tokens, self.applications)

    async def _ask(self, tool: str, inputs: list[ToolInput], deadline: float) -> list[ToolResult]:
        if self.applications and tool not in self.applications:
            return without_result(inputs, UNREACHABLE)
        return await self._ask_with_retries(tool, inputs, deadline, MAX_CRASHES)

    async def _ask_with_retries(
        self, tool: str, inputs: list[ToolInput], deadline: float, crashes_left: int
    ) -> list[ToolResult]:
        """Send a list until it is answered, time is up, or it cost `crashes_left` replicas.

        In the last case its parts are sent one after the other, down to single calls: an input that
        kills its replica loses only its own result. Among SPLIT_INTO² calls it costs five replicas.
        """
        backoff_s = MIN_BACKOFF_S
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._send(tool, inputs, deadline)
            except TimeoutError:
                return without_result(inputs, DEADLINE)
            except BackPressureError:
                reason = OVERLOADED
            except (RayActorError, ReplicaUnavailableError, DeploymentUnavailableError):
                reason = REPLICA_DIED
                crashes_left -= 1
            except RayServeException:
                return without_result(inputs, UNREACHABLE)
            except RayError:
                return without_result(inputs, TOOL_FAILED)
            if not crashes_left and len(inputs) > 1:
                return await self._ask_in_parts(tool, inputs, deadline)
            pause_s = backoff_s * random.uniform(0.5, 1.5)
            if not crashes_left or asyncio.get_running_loop().time() + pause_s >= deadline:
                return without_result(inputs, reason)
            await asyncio.sleep(pause_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    async def _ask_in_parts(self, tool: str, inputs: list[ToolInput], deadline: float) -> list[ToolResult]:
        """Send parts one after the other, so that none is lost with the replica of another."""
        size = -(-len(inputs) // SPLIT_INTO)
        answers: list[ToolResult] = []
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            crashes = 1 if size > 1 else 2
            answers += await self._ask_with_retries(tool, part, deadline, crashes)
        return answers

    def _connect(self, tool: str) -> Any:
        name = self.applications.get(tool) or application_name(self._config, tool)
        return serve.get_app_handle(name)

    async def _send(self, tool: str, inputs: list[ToolInput], deadline: float) -> list[ToolResult]:
        if tool not in self._handles:
            self._handles[tool] = await asyncio.to_thread(self._connect, tool)
        left_s = deadline - asyncio.get_running_loop().time()
        # Pairs, not dataclasses: those take longer to pickle than the calculator takes to answer.
        response = self._handles[tool].remote([(call.text, call.date) for call in inputs], left_s)
        try:
            return [ToolResult(result, reason) for result, reason in await response]
        except asyncio.CancelledError:
            response.cancel()
            raise
