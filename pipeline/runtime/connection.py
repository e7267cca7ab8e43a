"""The Ray cluster that a step runs on: the one this process is connected to, the one that is named (in the
recipe, or in RAY_ADDRESS), or a local one for this step only.

In: what the step needs. Out: a connection for the length of a block. A named cluster may grow, so too small
a one is warned of; a local one will not, so there the step is refused.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from tools_service.base.errors import ConfigurationError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """CPUs and GPUs that have to be there at once, what for, and what to do where they are not."""

    cpus: float
    gpus: float
    of: str
    remedy: str


@contextmanager
def ray_connection(needs: ResourceRequest, address: str | None = None) -> Iterator[None]:
    """Connect this process for the block, unless it is connected; then leave the connection alone.

    Raises ConfigurationError if no cluster is at the address, or this machine is too small.
    """
    if ray.is_initialized():
        check_resources(needs)
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    local = address == "local"
    if local:
        _start(needs)
    else:
        _join(address)
    try:
        check_resources(needs, local=local)
        yield
    finally:
        ray.shutdown()
        _forget_serve()


def _forget_serve() -> None:
    """Serve keeps its controller's handle beyond ray.shutdown, and takes the next cluster for the same one if
    this process has the same job id in both, as it has in clusters of its own (ray-project/ray#64647)."""
    if context := sys.modules.get("ray.serve.context"):
        context._set_global_client(None)


def _join(address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise ConfigurationError(
            f"{address} (ray.address, or RAY_ADDRESS): no Ray cluster there: {error}"
        ) from error


def _start(needs: ResourceRequest) -> None:
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it logs an error for every restartable actor
    # Logical CPUs only bound how many processes run at once; too few, and they wait for each other for ever.
    cpus = max(os.cpu_count() or 1, math.ceil(needs.cpus))
    ray.init(address="local", num_cpus=cpus, log_to_driver=False, logging_level=logging.ERROR)


def check_resources(needs: ResourceRequest, local: bool = False) -> None:
    """Say so where the step would wait: a cluster may grow, this machine will not."""
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for name, amount in (("CPU", needs.cpus), ("GPU", needs.gpus)):
        has = there.get(name, 0)
        if has >= amount:
            continue
        want = f"{amount:g} {name}s for {needs.of}"
        if local:
            raise ConfigurationError(f"{want}, but this machine has {has:g}: {needs.remedy}")
        logger.warning("%s, but the cluster has %g: waiting until it has grown", want, has)
