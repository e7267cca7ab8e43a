"""The Ray connection of a step.

In: a resource request and an address. Out: a connection for the length of a block: to the cluster that
this process is connected to, else to that at ray.address or RAY_ADDRESS, else to a local cluster, once it
has what the step needs (tools_service/runtime/resources.py). Steps within `one_local_cluster` share the
local cluster that the first of them starts.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from pipeline.base.config import ActorPoolConfig
from tools_service.base.cpus import available_cpus
from tools_service.runtime.address import LOCAL, chosen_address
from tools_service.runtime.connection import connect
from tools_service.runtime.resources import (
    ProcessRequest,
    ResourceRequest,
    require_machine,
    require_resources,
)


@contextmanager
def ray_connection(
    request: ResourceRequest, address: str | None = None, option: str = "ray.address"
) -> Iterator[None]:
    """Connect this process for the block; an existing connection is used and left open. `option` is the
    field that `address` comes from.

    Raises ConfigurationError if there is no cluster at the address, if Ray does not start, or if the
    cluster or this machine lacks what `request` asks for.
    """
    address, source = chosen_address(address, option)
    if _shared.started and (address != LOCAL or _too_small(request)):
        end_local_cluster()
    if ray.is_initialized():
        gc.collect()  # actors of an earlier run in this process may be left in cycles, with their GPUs
        require_resources(request)
        yield
        return
    if address == LOCAL:
        require_machine(request)
    # Logical CPUs only limit the number of processes. With too few, processes wait forever.
    cpus = max(available_cpus(), math.ceil(request.cpus))
    # Nobody is told where the dashboard of such a cluster is, and its processes take CPU time.
    connect(address, source, cpus=cpus, dashboard=False if _shared.wanted else None)
    shared = _shared.wanted and address == LOCAL
    try:
        if address != LOCAL:
            require_resources(request)
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


def actor_processes(of: str, config: ActorPoolConfig) -> ProcessRequest:
    """The request of a step's actors; `of` is their kind. One of them is enough to go on."""
    return ProcessRequest(
        of=of,
        count=config.needed_actors,
        least=1,
        cpus=config.cpus_per_actor,
        gpus=config.gpus_per_actor,
        fewer_cpus="lower ray.cpus_per_actor",
        fewer_gpus="lower ray.gpus_per_actor (0 runs on the CPU)",
        fewer="lower ray.actors",
    )


def max_readers(request: ResourceRequest, actors: int, inputs: int) -> int:
    """How many tasks may read `inputs` at the same time: as many as there are CPUs that nothing else asks
    for, and one for each actor at least. (Each asks for a tenth of a CPU, so without a limit ten of them
    would share one.)"""
    cpus = ray.cluster_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
    return max(1, min(inputs, max(actors, int(cpus - request.cpus + request.other_cpus))))
