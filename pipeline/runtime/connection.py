"""The Ray connection of a step.

In: a resource request and an address. Out: a connection for the length of a block: to the cluster that
this process is connected to, else to that at ray.address or RAY_ADDRESS, else to a local cluster. On a
named cluster that is too small a step waits, because a cluster may grow; on a local one it is refused.
Steps within `one_local_cluster` share the local cluster that the first of them starts.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from tools_service.base.cpus import available_cpus
from tools_service.base.errors import ConfigurationError
from tools_service.runtime.address import LOCAL
from tools_service.runtime.connection import chosen_address, connect

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """CPUs and GPUs needed at the same time by `of`, and the `remedy` if they are not available."""

    cpus: float
    gpus: float
    of: str
    remedy: str


@contextmanager
def ray_connection(request: ResourceRequest, address: str | None = None) -> Iterator[None]:
    """Connect this process for the block; an existing connection is used and left open.

    Raises ConfigurationError if there is no cluster at the address, if Ray does not start, or if this
    machine is too small.
    """
    address, source = chosen_address(address, "ray.address")
    if _shared.started and (address != LOCAL or _too_small(request)):
        end_local_cluster()
    if ray.is_initialized():
        check_resources(request)
        yield
        return
    # Logical CPUs only limit the number of processes. With too few, processes wait forever.
    cpus = max(available_cpus(), math.ceil(request.cpus))
    # Nobody is told where the dashboard of such a cluster is, and its processes take CPU time.
    connect(address, source, cpus=cpus, dashboard=False if _shared.wanted else None)
    shared = _shared.wanted and address == LOCAL
    try:
        check_resources(request, local=address == LOCAL)
        _shared.started = shared
        yield
    finally:
        if not _shared.started:
            _disconnect()


@contextmanager
def one_local_cluster() -> Iterator[None]:
    """Within the block, the local cluster of a step stays for the steps after it.

    A step that it is too small for, or that names another cluster, ends it.
    """
    _shared.wanted = True
    try:
        yield
    finally:
        _shared.wanted = False
        end_local_cluster()


def end_local_cluster() -> None:
    """End the cluster that steps share, if there is one: a step without Ray has the cores for itself."""
    if _shared.started:
        _shared.started = False
        _disconnect()


@dataclass(slots=True)
class _SharedCluster:
    """The state of `one_local_cluster`: within the block, and whether a step has started the cluster."""

    wanted: bool = False
    started: bool = False


_shared = _SharedCluster()


def _disconnect() -> None:
    ray.shutdown()
    # Drop the controller handle that Serve keeps after ray.shutdown (ray-project/ray#64647). This
    # process has the same job id in every local cluster of its own, so Serve would use the stale
    # handle in the next one.
    if context := sys.modules.get("ray.serve.context"):
        context._set_global_client(None)


def _too_small(request: ResourceRequest) -> bool:
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return bool(resources.get("CPU", 0) < request.cpus or resources.get("GPU", 0) < request.gpus)


def are_free(request: ResourceRequest, address: str | None = None) -> bool:
    """Whether the cluster is this process's own, and nobody uses any of what `request` asks for.

    In a cluster of several jobs or nodes, another job may ask for the same at the same moment, and a sum
    says nothing of a single node.
    """
    if chosen_address(address, "ray.address")[0] != LOCAL:
        return False
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    return bool(free.get("CPU", 0) >= request.cpus and free.get("GPU", 0) >= request.gpus)


def check_resources(request: ResourceRequest, local: bool = False) -> None:
    """ConfigurationError if a `local` cluster is too small; a warning if another cluster is."""
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for name, amount in (("CPU", request.cpus), ("GPU", request.gpus)):
        available = resources.get(name, 0)
        if available >= amount:
            continue
        needed = f"{amount:g} {name}s for {request.of}"
        if local:
            raise ConfigurationError(f"{needed}, but this machine has {available:g}: {request.remedy}")
        logger.warning("%s, but the cluster has %g: waiting until it has grown", needed, available)
