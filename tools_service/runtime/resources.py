"""Do the nodes of a cluster have what a step asks of them? One rule for all steps.

In: a resource request, and the nodes. Out: nothing, or a ResourceError that says which node lacks what and
which option helps. Each process must fit on one node; a sum over the cluster says nothing. What other jobs
use is not counted: they end. Where an autoscaler starts nodes, a step waits for them; elsewhere for
`wait_s`, and then gives up. Deliberately not here: where Ray puts a process.
"""

from __future__ import annotations

import bisect
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS, KV_NAMESPACE_JOB
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.experimental.internal_kv import _internal_kv_get

from tools_service.base.errors import ConfigurationError

logger = logging.getLogger(__name__)

WAIT_S = 30.0
READER_CPUS = 0.1
"""CPUs that a task of Ray Data asks for which reads or cuts batches: as little as a replica of a tool, so
that a node with actors and replicas has room for one. A whole CPU may be free nowhere."""

_POLL_S = 1.0
_REPORT_S = 60.0
_NAMED_NODES = 3  # in a message
_EPSILON = 1e-6  # Ray counts in units of 1e-4


class ResourceError(ConfigurationError):
    """The nodes do not have what a step asks of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRequest:
    """Processes of one kind. Each needs `cpus` CPUs and `gpus` GPUs of one node at the same time."""

    of: str
    """The kind, singular: "annotating actor"."""
    cpus: float
    gpus: float = 0.0
    count: int = 1
    least: int | None = None
    """How many must run for the step to go on; None: all of them."""
    fewer_cpus: str | None = None
    """What to do about too few CPUs: "lower ray.cpus_per_actor". The command line shows fields as options."""
    fewer_gpus: str | None = None
    fewer: str | None = None
    """How to ask for fewer of them."""

    def __str__(self) -> str:
        return " and ".join(_amount(value, name) for name, value in self.amounts if value) or "nothing"

    @property
    def amounts(self) -> tuple[tuple[str, float], ...]:
        return ("CPU", self.cpus), ("GPU", self.gpus)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceRequest:
    """What a step needs at the same time."""

    processes: tuple[ProcessRequest, ...]
    other_cpus: float = 0.0
    """CPUs besides, if this machine is the cluster: its logical CPUs are as many as are asked for."""
    wait_s: float = WAIT_S
    """Seconds to wait for a node, where no autoscaler starts one."""
    wait_option: str = ""

    @property
    def cpus(self) -> float:
        """CPUs of all processes."""
        return sum(each.count * each.cpus for each in self.processes) + self.other_cpus

    @property
    def gpus(self) -> float:
        """GPUs of all processes."""
        return sum(each.count * each.gpus for each in self.processes)

    @property
    def least(self) -> tuple[ProcessRequest, ...]:
        """The processes without which the step stands still."""
        return tuple(
            each if each.least is None else replace(each, count=min(each.least, each.count))
            for each in self.processes
        )


@dataclass(frozen=True, slots=True)
class Node:
    """The CPUs and GPUs of a node, of Ray's count."""

    name: str
    cpus: float
    gpus: float
    node_id: str = field(default="", compare=False)

    def lacks(self, process: ProcessRequest) -> tuple[str, ...]:
        """Names of the resources that are too few for `process`."""
        there = {"CPU": self.cpus, "GPU": self.gpus}
        return tuple(name for name, amount in process.amounts if there[name] + _EPSILON < amount)

    def without(self, process: ProcessRequest) -> Node:
        """What is left beside `process`."""
        return replace(self, cpus=self.cpus - process.cpus, gpus=self.gpus - process.gpus)


def shortage(processes: Sequence[ProcessRequest], nodes: Sequence[Node]) -> str | None:
    """Return why `processes` cannot all run on `nodes` at the same time, and what helps; None if they can.

    The largest are placed first, each on the node that has the least left for it (best fit decreasing).
    """
    processes = [process for process in processes if process.cpus or process.gpus]
    for process in processes:
        if process.count and all(node.lacks(process) for node in nodes):
            return f"{_a(process.of)} needs {process} on one node; {_lacking(process, nodes)}: " + _or(
                _advice(process, nodes)
            )
    left = list(nodes)
    for process in sorted(processes, key=lambda each: (each.gpus, each.cpus), reverse=True):
        for number in range(process.count):
            room = [at for at, node in enumerate(left) if not node.lacks(process)]
            if not room:
                lacking = {name for node in left for name in node.lacks(process)}
                fewer = [
                    each.fewer
                    for each in processes
                    if each.fewer and each.count > 1 and any(dict(each.amounts)[name] for name in lacking)
                ]
                return (
                    f"there is room for {number} of {process.count} {process.of}s, each {process}, beside "
                    f"the other processes; {_lacking(process, left, ' left')}: "
                    + _or([*_advice(process, left), *fewer])
                )
            best = min(room, key=lambda at: (left[at].gpus, left[at].cpus))
            left[best] = left[best].without(process)
    return None


def room_for(process: ProcessRequest, beside: Sequence[ProcessRequest], nodes: Sequence[Node]) -> int:
    """How many of `process.count` processes fit on `nodes` at the same time, beside others."""

    def is_too_many(count: int) -> bool:
        return shortage((replace(process, count=count), *beside), nodes) is not None

    return bisect.bisect_left(range(1, process.count + 1), True, key=is_too_many)


def require_machine(request: ResourceRequest) -> None:
    """Raise ResourceError if this machine, as the whole cluster, lacks GPUs. Ray need not run.

    CPUs are only numbers there: a local Ray gets as many as are asked for.
    """
    if request.gpus:
        machine = Node("this machine", math.inf, own_gpus())
        if problem := shortage(request.processes, [machine]):
            raise ResourceError(f"{problem}, or name a cluster that has them")


def own_gpus() -> float:
    """The GPUs of this machine that Ray would count."""
    manager: Any = get_accelerator_manager_for_resource("GPU")
    visible = manager.get_current_process_visible_accelerator_ids()
    found: float = manager.get_current_node_num_accelerators()
    return found if visible is None else min(found, len(visible))


def require_resources(request: ResourceRequest) -> None:
    """Return when the cluster that this process is connected to has what `request` needs at least.

    Raises ResourceError if it has not, no node has come for `request.wait_s`, and none is being started.
    """
    nodes = live_nodes()
    problem = shortage(request.least, nodes)
    if problem is None:
        if short := shortage(request.processes, nodes):
            logger.warning("%s. The run starts with those that have room", short)
        return
    with _demand(request.least):
        ends = time.monotonic() + request.wait_s
        next_report = 0.0
        while problem := shortage(request.least, nodes):
            coming = _nodes_are_coming()
            if coming or live_nodes() != nodes:
                nodes, ends = live_nodes(), time.monotonic() + request.wait_s
            elif time.monotonic() > ends:
                hint = f" ({request.wait_option} waits longer)" if request.wait_option else ""
                raise ResourceError(
                    f"{problem}, or add such a node; none came within {request.wait_s:g} s{hint}"
                )
            if time.monotonic() >= next_report:
                until = "the autoscaler starts nodes" if coming else f"for {request.wait_s:g} s at most"
                logger.warning("waiting (%s): %s", until, problem)
                next_report = time.monotonic() + _REPORT_S
            time.sleep(_POLL_S)


def live_nodes() -> list[Node]:
    """The nodes of the cluster that have CPUs or GPUs, without what the command of this job itself holds."""
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    addresses = [node["NodeManagerAddress"] for node in alive]
    nodes, own = [], _own_command()
    for node, address in zip(alive, addresses, strict=True):
        resources = node["Resources"]
        name = address if addresses.count(address) == 1 else f"{address} (node {node['NodeID'][:8]})"
        size = Node(name, resources.get("CPU", 0.0), resources.get("GPU", 0.0), node["NodeID"])
        if not (size.cpus or size.gpus):
            continue
        if own is not None and node["NodeID"] == ray.get_runtime_context().get_node_id():
            size = replace(size.without(own), name=f"{name}, beside the job's own command ({own}),")
        nodes.append(size)
    return sorted(nodes, key=lambda node: node.name)


def _own_command() -> ProcessRequest | None:
    """What Ray holds for this process as the command of a submitted job, as long as the job runs."""
    try:
        metadata = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR) or "{}").get("metadata") or {}
        if (job := metadata.get("job_submission_id")) is None:
            return None
        key = f"_ray_internal_job_info_{job}"
        info: dict[str, Any] = json.loads(_internal_kv_get(key, namespace=KV_NAMESPACE_JOB) or b"{}")
        cpus, gpus = (info.get(f"entrypoint_num_{name}") or 0.0 for name in ("cpus", "gpus"))
    except Exception as error:  # a report that cannot be read must not end a run that may go on
        logger.debug("the job's own resources cannot be read", exc_info=error)
        return None
    return ProcessRequest(of="command", cpus=cpus, gpus=gpus) if cpus or gpus else None


def free_nodes() -> list[Node]:
    """What is free now on each node of `live_nodes`."""
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()  # type: ignore[no-untyped-call]
    return [
        Node(node.name, amounts.get("CPU", 0.0), amounts.get("GPU", 0.0))
        for node in live_nodes()
        for amounts in [free.get(node.node_id, {})]
    ]


def no_room(process: ProcessRequest, free: Sequence[Node]) -> str | None:
    """What the nodes lack for one more `process`, from what is `free` on each; None if one has room."""
    if any(not node.lacks(process) for node in free):
        return None
    return _lacking(process, free, " free")


@contextmanager
def _demand(processes: Sequence[ProcessRequest]) -> Iterator[None]:
    """Show the autoscaler, if there is one, what is needed: it starts nodes only for what waits."""
    bundles = [
        {name: amount for name, amount in each.amounts if amount}
        for each in processes
        for _ in range(each.count)
        if each.cpus or each.gpus
    ]
    group = ray.util.placement_group(bundles)
    try:
        yield
    finally:
        ray.util.remove_placement_group(group)


def _nodes_are_coming() -> bool:
    """Whether an autoscaler of the cluster is starting nodes, as it reports itself."""
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    try:
        if is_autoscaler_v2():
            status = get_cluster_status(ray.get_runtime_context().gcs_address)
            return bool(status.pending_launches or status.pending_nodes)
        report: dict[str, Any] = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or b"{}")
        summary = report.get("autoscaler_report") or {}
        return bool(summary.get("pending_launches") or summary.get("pending_nodes"))
    except Exception as error:  # a report that cannot be read must not end a run that may go on
        logger.debug("the autoscaler's report cannot be read", exc_info=error)
        return False


def _lacking(process: ProcessRequest, nodes: Sequence[Node], left: str = "") -> str:
    """What the nodes that come nearest lack, for a sentence."""
    if not nodes:
        return "the cluster has no node with CPUs or GPUs"

    nearest = sorted(nodes, key=lambda node: (len(node.lacks(process)), -node.gpus, -node.cpus))
    parts = []
    for node in nearest[:_NAMED_NODES]:
        there = {"CPU": node.cpus, "GPU": node.gpus}
        amounts = [_amount(round(max(there[name], 0.0), 4), name) for name in node.lacks(process)]
        parts.append(f"{node.name} has {' and '.join(amounts)}{left}")
    others = len(nearest) - _NAMED_NODES
    return "; ".join(parts) + (f"; {others} other nodes have no more" if others > 0 else "")


def _advice(process: ProcessRequest, nodes: Sequence[Node]) -> list[str]:
    lacking = {name for node in nodes for name in node.lacks(process)} or {"CPU", "GPU"}
    advice = {"CPU": process.fewer_cpus, "GPU": process.fewer_gpus}
    return [text for name, text in advice.items() if text and name in lacking and dict(process.amounts)[name]]


def _or(advice: Sequence[str]) -> str:
    return " or ".join(dict.fromkeys(advice)) or "use larger nodes"


def _amount(value: float, name: str) -> str:
    return f"{value:g} {name}" + ("" if value == 1 else "s")


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
