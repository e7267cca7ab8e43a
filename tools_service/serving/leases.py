"""Which Serve application runs a tool, and who uses it: several jobs on one cluster share their tools.

An application is called SERVICE-TOOL-DIGEST; the digest is of everything the tool's replicas are made
from. So jobs that want the same tool find the same replicas, and jobs that want it otherwise get replicas of
their own: nobody changes a tool under another job (docs/decisions/0011).

Whoever uses applications holds a `Lease` on them: an actor that does nothing and whose name lists them. Ray
ends it with the process that made it, however that ends, so a crash leaves no lease behind. `exclusively`
lets one process at a time start or stop the tools of a service.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tools_service.base.errors import ToolformerError
from tools_service.config import ToolsConfig
from tools_service.tools.registry import fingerprint

NAMESPACE = "toolformer-tools"  # of Ray, the same for every job
LOCK_TIMEOUT_S = 1_800.0  # the longest start: large models, downloaded first
_RETRY_S = 0.2


class SharedToolsError(ToolformerError):
    """The tools of a service cannot be started or stopped now."""


def application(config: ToolsConfig, tool: str) -> str:
    """The name of the Serve application that runs `tool` as `config` wants it."""
    digest = hashlib.blake2b(fingerprint(config, tool).encode(), digest_size=5).hexdigest()
    return f"{config.service}-{tool}-{digest}"


class Lease:
    """The right to find `applications` running until `release`, or until this process ends."""

    def __init__(self, service: str, applications: Iterable[str]) -> None:
        self._name = f"{_prefix(service)}{uuid.uuid4().hex} {' '.join(applications)}"
        self._actor = _named_actor(self._name)

    def release(self) -> None:
        """Give it back."""
        import ray

        ray.kill(self._actor)


def leased(service: str) -> set[str]:
    """The applications of `service` that somebody holds a lease on."""
    import ray

    prefix = _prefix(service)
    names = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)]
    return {name for lease in names if lease.startswith(prefix) for name in lease.split()[3:]}


@contextmanager
def exclusively(service: str, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Keep every other process from starting or stopping tools of `service` during the block."""
    import ray

    until = time.monotonic() + timeout_s
    while True:
        try:
            lock = _named_actor(f"lock {service}")
            break
        except ValueError as error:  # the name is taken: another process is at it
            if time.monotonic() > until:
                raise SharedToolsError(
                    f"tools.service {service!r}: another job has been starting or stopping its tools for "
                    f"{timeout_s:.0f} s; wait for it, end it, or choose another service name"
                ) from error
            time.sleep(_RETRY_S)
    try:
        yield
    finally:
        ray.kill(lock)


def _prefix(service: str) -> str:
    return f"lease {service} "


def _named_actor(name: str) -> Any:
    """An actor that is only there. Ray takes its name at once; ValueError if another actor has it."""
    import ray

    class Nothing:
        pass

    return ray.remote(Nothing).options(name=name, namespace=NAMESPACE, num_cpus=0).remote()
