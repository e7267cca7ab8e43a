"""How failures of Ray Serve become errors of the interface, without a cluster."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from pipeline.inference.generation import InferenceError
from pipeline.inference.params import DecodingParams
from pipeline.serving.deployment import ReplicatedModel
from pipeline.serving.errors import ApiError

pytestmark = pytest.mark.unit


class FailingHandle:
    """A handle whose responses raise `error`, or never come; counts those that are cancelled."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.cancelled = error, 0

    def options(self, **_: Any) -> FailingHandle:
        return self

    def remote(self, *_: Any) -> FailingHandle:
        return self

    async def __aiter__(self) -> Any:
        if self.error is not None:
            raise self.error
        yield []
        await asyncio.Event().wait()

    def cancel(self) -> None:
        self.cancelled += 1
        raise BackPressureError(num_queued_requests=1, max_queued_requests=1)


def failing(error: Exception) -> ApiError:
    async def read() -> None:
        async for _ in ReplicatedModel(FailingHandle(error))("a", DecodingParams(), None, stream=True):
            pass

    with pytest.raises(ApiError) as raised:
        asyncio.run(read())
    return raised.value


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BackPressureError(num_queued_requests=9, max_queued_requests=9), 429),
        (ActorDiedError(), 503),
        (DeploymentUnavailableError("model"), 503),
        (RayTaskError("decode", "traceback", InferenceError("not finite")), 500),
    ],
)
def test_each_failure_has_its_status(error: Exception, status: int) -> None:
    assert failing(error).status == status


def test_a_failure_of_decoding_says_what_failed() -> None:
    error = RayTaskError("decode", "traceback", InferenceError("logits are not finite"))
    assert str(failing(error)) == "decoding failed: logits are not finite"


def test_closing_cancels_the_request_even_if_that_fails() -> None:
    handle = FailingHandle(None)

    async def close_early() -> None:
        events = ReplicatedModel(handle)("a", DecodingParams(), None, stream=True)
        await anext(events)
        await events.aclose()

    asyncio.run(close_early())
    assert handle.cancelled == 1
