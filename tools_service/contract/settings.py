"""The settings that every tool has: how it runs on Ray, and how long its callers wait."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from tools_service.base.settings import Frozen, Gpus, Positive, PositiveInt, Resource

Seconds = Annotated[float, Field(gt=0.0, le=1e6)]


class Deployment(Frozen):
    """How a tool runs on Ray Serve, and how long its callers wait."""

    min_replicas: PositiveInt = 1
    """Replicas that always run."""
    max_replicas: PositiveInt = 1
    """Maximum of replicas; Ray Serve adds and removes those above min_replicas with the load."""
    target_ongoing_requests: Positive = 2.0
    """Requests per replica, running and waiting, above which a replica is added."""
    cpus: Resource = 0.1
    """CPUs reserved by a replica; a fraction leaves the rest to the annotating actors."""
    gpus: Gpus = 0.0
    """GPUs reserved by a replica; with a fraction several replicas share one."""
    deadline_s: Seconds = 30.0
    """Seconds, retries included, after which an unanswered list of calls has no results."""
    list_size: PositiveInt = 256
    """Maximum of calls in one request to a replica."""
    threads: PositiveInt = 8
    """Requests that a replica works on at a time; other accepted requests wait in it."""
    max_ongoing_requests: PositiveInt = 64
    """Requests that a replica accepts at a time."""
    max_queued_requests: PositiveInt = 1_024
    """Requests that each client queues for a replica; others are retried until the deadline."""
    health_check_s: Seconds = 10.0
    """Seconds between health checks; a replica that fails three is replaced."""

    @model_validator(mode="after")
    def _bounds(self) -> Deployment:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas = {self.max_replicas} is below min_replicas = {self.min_replicas}: raise it"
            )
        return self


class ToolSettings(Frozen):
    """The settings of a tool. A tool's class may name a subclass with more fields, as `Config`."""

    OPERATIONAL: ClassVar[Mapping[str, Any]] = {"deployment": True}
    """Fields that no result depends on (as pydantic's `exclude`): a resumed run may change them."""

    deployment: Deployment = Deployment()

    def at_inference(self) -> Self:
        """The same for texts that are written now, and have no date of their own."""
        return self

    def writing_below(self, folder: Path) -> Self:
        """The same with all that the tool writes below `folder`."""
        return self
