"""Replicas of the model on Ray Serve, each with a StreamingEngine.

In: a ServeConfig and a client of running tools. Out: a `Decode`. Serve chooses the replica with the fewest
prompts, limits how many wait, and replaces a replica that ends or whose engine has stopped. A lost replica
costs the prompts that it was decoding: they are not sent to another one, which they could end as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from pipeline.base.serve_config import ServeConfig
from pipeline.inference.generation import EndEvent, Event
from pipeline.inference.params import DecodingParams
from pipeline.serving.decoding import Prompt
from pipeline.serving.errors import ApiError, queue_full, replica_lost
from tools_service.base.errors import ToolformerError
from tools_service.serving.deployment import QUIET
from tools_service.tools.client import ToolClient

logger = logging.getLogger(__name__)

DEPLOYMENT = "model"
_HEALTH_CHECK_S = 5.0
_MAX_REASON = 300


class ModelStartError(ToolformerError):
    """The replicas do not start; the message has the reason."""


class ModelReplica:
    """One copy of the model in a process of its own."""

    def __init__(self, config: ServeConfig, tools: ToolClient) -> None:
        import torch

        from pipeline.engine.loading import load_language_model
        from pipeline.inference.streaming import StreamingEngine

        torch.set_num_threads(max(1, int(config.cpus_per_replica)))
        model = config.generation.model.placed(config.gpus_per_replica)
        self._engine = StreamingEngine(load_language_model(model), tools, config.max_rows)

    async def decode(
        self, prompt: Prompt, params: DecodingParams, date: str | None, stream: bool
    ) -> AsyncIterator[list[Event]]:
        """The events of a prompt in lists, as `Decode`. Decoding ends when the caller cancels."""
        events = self._engine.submit(prompt, params, date)
        batch: list[Event] = []
        try:
            async for event in events:
                batch.append(event)
                if stream or isinstance(event, EndEvent):
                    yield batch
                    batch = []
        finally:
            events.cancel()

    def check_health(self) -> None:
        """Raise if the engine has stopped. Serve calls this and then replaces the replica."""
        if not self._engine.is_alive:
            raise RuntimeError("the decoding thread has ended")


class ReplicatedModel:
    """Decodes with the replicas behind a handle; a `Decode`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle.options(method_name="decode", stream=True)

    async def __call__(
        self, prompt: Prompt, params: DecodingParams, date: str | None, *, stream: bool
    ) -> AsyncGenerator[list[Event], None]:
        """Raises ApiError: 429 if too many prompts wait, 503 if the replica is lost, 500 if it fails."""
        response = self._handle.remote(prompt, params, date, stream)
        try:
            async for events in response:
                yield events
        except (asyncio.CancelledError, GeneratorExit):
            with contextlib.suppress(RayError, RayServeException):  # it may have failed in the meantime
                response.cancel()
            raise
        except BackPressureError:
            raise queue_full() from None
        except (RayActorError, DeploymentUnavailableError) as error:
            logger.warning("a replica was lost: %s", _first_line(error))
            raise replica_lost() from error
        except (RayError, RayServeException) as error:
            logger.error("decoding failed", exc_info=True)
            raise ApiError(500, f"decoding failed: {_first_line(error)}") from error


def deploy_model(config: ServeConfig, tools: ToolClient, application: str) -> ReplicatedModel:
    """Start the replicas, and wait until all are ready. Raises ModelStartError."""
    serve.start(proxy_location="Disabled", logging_config=QUIET)
    replica = serve.deployment(name=DEPLOYMENT, **_options(config))(ModelReplica)
    try:
        handle = serve.run(replica.bind(config, tools), name=application, route_prefix=None)
    except RuntimeError as error:
        raise ModelStartError(f"the model could not be started on Ray: {_reason(error)}") from error
    return ReplicatedModel(handle)


def replica_states(application: str) -> dict[str, int]:
    """How many replicas are in each of Serve's states."""
    overview = serve.status().applications.get(application)
    if overview is None or DEPLOYMENT not in overview.deployments:
        return {}
    states = overview.deployments[DEPLOYMENT].replica_states
    return {str(state): count for state, count in states.items()}


def _options(config: ServeConfig) -> dict[str, Any]:
    return {
        "num_replicas": config.replicas,
        "max_ongoing_requests": config.max_rows,
        "max_queued_requests": config.max_queued,
        "ray_actor_options": {"num_cpus": config.cpus_per_replica, "num_gpus": config.gpus_per_replica},
        "health_check_period_s": _HEALTH_CHECK_S,
        "health_check_timeout_s": 30.0,
        "graceful_shutdown_timeout_s": 2.0,
        "graceful_shutdown_wait_loop_s": 0.1,
        "logging_config": QUIET,
    }


def _first_line(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0][:_MAX_REASON]


def _reason(error: Exception) -> str:
    """The last line of the exception in Serve's message, which is that of the replica."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:_MAX_REASON]
