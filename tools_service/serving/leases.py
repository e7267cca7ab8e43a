"""Names and leases of Serve applications: several jobs on a cluster share their tools.

An application is called SERVICE-TOOL-DIGEST. The digest covers everything the tool's replicas are
made from: jobs with equal settings share replicas, and no job changes a tool under another
(docs/decisions/0011). A user of applications holds a `Lease` on them: a no-op actor whose name
encodes the leased applications. Ray ends the actor with the process that created it, however that
ends, so that a crash leaves no lease.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from tools_service.base.errors import ToolformerError
from tools_service.config import ToolsConfig
from tools_service.tools.registry import tool_fingerprint

NAMESPACE = "toolformer-tools"  # Ray's, the same for every job
LOCK_TIMEOUT_S = 1_800.0  # the longest start: large models that are downloaded first
_RETRY_S = 0.2
_DIGEST_CHARACTERS = 10


class SharedToolsError(ToolformerError):
    """The tools of a service cannot be started or stopped now."""


def application_name(config: ToolsConfig, tool: str) -> str:
    """Return the name of the Serve application that runs `tool` with the settings of `config`."""
    return f"{config.service}-{tool}-{tool_fingerprint(config, tool)[:_DIGEST_CHARACTERS]}"


class Lease:
    """A claim on running `applications` until `release`, or until this process ends."""

    def __init__(self, service: str, applications: Iterable[str]) -> None:
        name = f"lease {service} {uuid.uuid4().hex} {' '.join(applications)}"
        self._actor = _create_named_actor(name)

    def release(self) -> None:
        """Give up the claim."""
        ray.kill(self._actor)


def leased_applications(service: str) -> set[str]:
    """Return the applications of `service` that somebody holds a lease on."""
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    leases = [name for name in names if name.startswith(f"lease {service} ")]
    return {application for name in leases for application in name.split()[3:]}


@contextmanager
def service_lock(service: str, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Let one process at a time start or stop tools; SharedToolsError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            lock = _create_named_actor(f"lock {service}")
            break
        except ValueError as error:  # another process has an actor of that name
            if time.monotonic() > deadline:
                raise SharedToolsError(
                    f"tools.service {service!r}: another job has been starting or stopping its tools for "
                    f"{timeout_s:.0f} s; wait for it, end it, or choose another service name"
                ) from error
            time.sleep(_RETRY_S)
    try:
        yield
    finally:
        ray.kill(lock)


def _create_named_actor(name: str) -> Any:
    """Create a no-op actor. Ray reserves its name at once; ValueError if another actor has it."""

    class NoOp:
        pass

    return ray.remote(NoOp).options(name=name, namespace=NAMESPACE, num_cpus=0).remote()
