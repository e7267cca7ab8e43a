"""Which nodes lack what, which option helps, and when a step waits. The nodes are made up."""

from __future__ import annotations

import json
import logging
import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest

from tools_service.runtime import resources
from tools_service.runtime.resources import (
    Node,
    ProcessRequest,
    ResourceError,
    ResourceRequest,
    require_machine,
    require_resources,
    room_for,
    shortage,
)

pytestmark = pytest.mark.unit

ACTOR = ProcessRequest(
    of="actor",
    count=4,
    least=1,
    cpus=1,
    gpus=1,
    fewer_cpus="lower --cpus-per-actor",
    fewer_gpus="lower --gpus-per-actor",
    fewer="lower --actors",
)
REPLICA = ProcessRequest(of="QA replica", count=2, cpus=0.1, fewer="lower --min-replicas")
READER = ProcessRequest(of="reading task", cpus=0.1)
ON_CPU = replace(ACTOR, gpus=0)


@pytest.mark.parametrize(
    ("processes", "nodes"),
    [
        ((), []),
        ((ACTOR,), [Node("a", 4, 4)]),
        ((ACTOR,), [Node("a", 2, 2), Node("b", 2, 2)]),
        ((replace(ACTOR, count=0),), []),
        ((replace(ACTOR, cpus=0, gpus=0),), []),  # on KubeRay's head, which has no CPU
        ((replace(ACTOR, gpus=0.5),), [Node("a", 4, 2)]),
        # Fractions that are not exact in binary fill a node to its last tenth.
        ((replace(READER, count=10),), [Node("a", 1, 0)]),
        ((replace(ACTOR, gpus=0.1, cpus=0, count=30),), [Node("a", 0, 3)]),
        # Actors on the node with GPUs, replicas elsewhere: a replica there would take an actor's CPU.
        ((REPLICA, ACTOR), [Node("gpu", 4, 4), Node("cpu", 0.2, 0)]),
        # Two nodes of two CPUs have no whole CPU left beside one actor and some replicas each.
        ((replace(ON_CPU, count=2), replace(REPLICA, count=5), READER), [Node("a", 2, 0), Node("b", 2, 0)]),
    ],
)
def test_what_fits(processes: tuple[ProcessRequest, ...], nodes: list[Node]) -> None:
    assert shortage(processes, nodes) is None


@pytest.mark.parametrize(
    ("processes", "nodes", "problem"),
    [
        (
            (replace(ACTOR, gpus=8),),
            [Node("a", 32, 4), Node("b", 64, 4)],
            "an actor needs 1 CPU and 8 GPUs on one node; b has 4 GPUs; a has 4 GPUs: lower --gpus-per-actor",
        ),
        (
            (replace(ACTOR, cpus=8),),
            [Node("gpu", 4, 1), Node("cpu", 64, 0)],
            "an actor needs 8 CPUs and 1 GPU on one node; gpu has 4 CPUs; cpu has 0 GPUs: "
            "lower --cpus-per-actor or lower --gpus-per-actor",
        ),
        (
            (ACTOR, REPLICA),
            [],
            "an actor needs 1 CPU and 1 GPU on one node; the cluster has no node with CPUs or GPUs: "
            "lower --cpus-per-actor or lower --gpus-per-actor",
        ),
        (
            (ACTOR,),
            [Node("a", 9, 3)],
            "there is room for 3 of 4 actors, each 1 CPU and 1 GPU, beside the other processes; a has 0 GPUs "
            "left: lower --gpus-per-actor or lower --actors",
        ),
        (
            (REPLICA, ON_CPU),
            [Node("a", 2, 0), Node("b", 2, 0)],
            "there is room for 0 of 2 QA replicas, each 0.1 CPUs, beside the other processes; a has 0 CPUs "
            "left; b has 0 CPUs left: lower --min-replicas or lower --actors",
        ),
        (
            (replace(ON_CPU, count=2), replace(READER, cpus=1)),
            [Node(name, 1.5, 0) for name in "ab"],
            "there is room for 0 of 1 reading tasks, each 1 CPU, beside the other processes; a has 0.5 CPUs "
            "left; b has 0.5 CPUs left: lower --actors",
        ),
        (
            (replace(READER, cpus=5),),
            [Node(name, number, 0) for number, name in enumerate("abcde")],
            "a reading task needs 5 CPUs on one node; e has 4 CPUs; d has 3 CPUs; c has 2 CPUs; 2 other "
            "nodes have no more: use larger nodes",
        ),
    ],
)
def test_who_lacks_what_and_what_helps(
    processes: tuple[ProcessRequest, ...], nodes: list[Node], problem: str
) -> None:
    assert shortage(processes, nodes) == problem


def test_a_sum_over_the_cluster_is_not_enough() -> None:
    """The case that hung for ever: eight GPUs there, none of the nodes with more than four."""
    nodes = [Node("a", 32, 4), Node("b", 32, 4)]
    assert shortage((replace(ACTOR, count=1, gpus=8),), nodes) is not None
    assert shortage((replace(ACTOR, count=2, gpus=4),), nodes) is None


@pytest.mark.parametrize(
    ("gpus", "beside", "nodes", "count"),
    [
        (1, 0, [Node("a", 16, 8)], 8),
        (1, 1, [Node("a", 16, 8)], 7),  # QA and MT share the eighth
        (2, 1, [Node("a", 16, 8)], 3),
        (0.5, 0, [Node("a", 16, 1)], 2),
        (1, 0, [Node("a", 16, 0)], 0),
        (2, 0, [Node("a", 16, 3), Node("b", 16, 3)], 2),  # the sum has room for three
        (1, 0, [Node("a", 3, 8)], 3),  # no CPU for more
    ],
)
def test_as_many_as_there_is_room_for(gpus: float, beside: float, nodes: list[Node], count: int) -> None:
    tools = [ProcessRequest(of="tool", cpus=0.1, gpus=beside / 2, count=2)] if beside else []
    assert room_for(replace(ACTOR, gpus=gpus, count=99), tools, nodes) == count
    assert room_for(replace(ACTOR, gpus=gpus, count=2), tools, nodes) == min(count, 2)


class Cluster:
    """Nodes as they are at each look, and whether the autoscaler starts some. Time passes by sleeping."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *looks: list[Node], coming: tuple[float, float]):
        self.looks, self.coming, self.now = list(looks), coming, 0.0
        self.demands: list[Any] = []
        monkeypatch.setattr(resources, "live_nodes", self.live_nodes)
        monkeypatch.setattr(resources, "_nodes_are_coming", lambda: coming[0] <= self.now < coming[1])
        monkeypatch.setattr(resources, "_demand", self.demand)
        monkeypatch.setattr(resources.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(resources.time, "sleep", self.sleep)

    def live_nodes(self) -> list[Node]:
        return self.looks[min(int(self.now // 10), len(self.looks) - 1)]

    def demand(self, processes: Any) -> Any:
        self.demands.append(processes)
        return nullcontext()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 10_000, "it waits for ever"


REQUEST = ResourceRequest(processes=(ACTOR, READER), wait_s=20, wait_option="--wait-s")
FITS, ONE, NONE = [Node("a", 5, 4)], [Node("a", 2, 1)], [Node("a", 2, 0)]
NEVER = (math.inf, math.inf)


def test_what_is_there_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    there = Cluster(monkeypatch, FITS, coming=NEVER)
    require_resources(REQUEST)
    assert (there.now, there.demands, caplog.text) == (0, [], "")


def test_a_run_starts_with_the_actors_that_have_room(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    there = Cluster(monkeypatch, ONE, coming=NEVER)
    with caplog.at_level(logging.WARNING):
        require_resources(REQUEST)
    assert there.now == 0
    assert "there is room for 1 of 4 actors" in caplog.text
    with pytest.raises(ResourceError, match="room for 1 of 4 actors"):  # where all of them are needed
        require_resources(replace(REQUEST, processes=(replace(ACTOR, least=None),)))


def test_without_an_autoscaler_the_wait_ends(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    there = Cluster(monkeypatch, NONE, coming=NEVER)
    message = r"needs 1 CPU and 1 GPU .*; a has 0 GPUs: .*none came within 20 s \(--wait-s waits longer\)"
    with pytest.raises(ResourceError, match=message), caplog.at_level(logging.WARNING):
        require_resources(REQUEST)
    assert 20 <= there.now <= 22
    assert [[each.count for each in demand] for demand in there.demands] == [[1, 1]], (
        "what is needed at least"
    )
    assert "waiting (for 20 s at most): an actor needs" in caplog.text


def test_a_node_that_joins_ends_the_wait_or_renews_it(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Cluster(monkeypatch, NONE, ONE, coming=NEVER)
    require_resources(REQUEST)
    assert 10 <= there.now <= 12
    there = Cluster(monkeypatch, NONE, [*NONE, Node("b", 2, 0)], coming=NEVER)
    with pytest.raises(ResourceError):
        require_resources(REQUEST)
    assert 30 <= there.now <= 33


def test_while_the_autoscaler_starts_nodes_a_step_waits_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    there = Cluster(monkeypatch, *[NONE] * 100, ONE, coming=(5, 2_000))
    with caplog.at_level(logging.WARNING):
        require_resources(REQUEST)
    assert there.now >= 1_000
    assert 10 < caplog.text.count("waiting (the autoscaler starts nodes)") < 20
    there = Cluster(monkeypatch, NONE, coming=(5, 100))
    with pytest.raises(ResourceError):
        require_resources(REQUEST)
    assert 118 <= there.now <= 123


def test_this_machine_is_refused_at_once_if_it_lacks_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "own_gpus", lambda: 3)
    require_machine(replace(REQUEST, processes=(replace(ACTOR, count=3, cpus=1_000), READER)))
    require_machine(ResourceRequest(processes=(replace(READER, cpus=1_000),)))
    with pytest.raises(ResourceError, match=r"room for 3 of 4 actors.*this machine has 0 GPUs left.*cluster"):
        require_machine(REQUEST)


@pytest.mark.parametrize(("visible", "count"), [(None, 4), ("", 0), ("1", 1), ("0,1,2,3", 4)])
def test_gpus_that_are_hidden_do_not_count(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int
) -> None:
    manager = resources.get_accelerator_manager_for_resource("GPU")
    monkeypatch.setattr(manager, "get_current_node_num_accelerators", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert resources.own_gpus() == count


def test_nodes_are_named_so_that_one_can_tell_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def node(name: str, address: str, alive: bool = True, **resources: float) -> dict[str, Any]:
        return {"NodeID": name * 56, "NodeManagerAddress": address, "Alive": alive, "Resources": resources}

    monkeypatch.setattr(
        resources.ray,
        "nodes",
        lambda: [
            node("1", "10.0.0.9", CPU=4.0, GPU=1.0),
            node("2", "10.0.0.9", alive=False, CPU=4.0),
            node("3", "10.0.0.1"),  # a head that runs no work
            node("4", "10.0.0.2", CPU=2.0),
            node("5", "10.0.0.2", CPU=3.0),
        ],
    )
    assert resources.live_nodes() == [
        Node("10.0.0.2 (node 44444444)", 2, 0),
        Node("10.0.0.2 (node 55555555)", 3, 0),
        Node("10.0.0.9", 4, 1),
    ]


@pytest.mark.parametrize(
    ("held", "said", "left"),
    [
        ({"entrypoint_num_cpus": 1, "entrypoint_num_gpus": None}, "1 CPU", 1),
        ({"entrypoint_num_cpus": 2}, "2 CPUs", 0),
        ({}, "", 2),
        (None, "", 2),  # no job of this name
    ],
)
def test_what_the_command_of_a_submitted_job_holds_is_not_there_for_others(
    monkeypatch: pytest.MonkeyPatch, held: dict[str, Any] | None, said: str, left: float
) -> None:
    nodes = [
        {"NodeID": node, "NodeManagerAddress": node, "Alive": True, "Resources": {"CPU": 2.0}}
        for node in ("a", "b")
    ]
    info = {"_ray_internal_job_info_mine": json.dumps(held).encode()} if held is not None else {}
    monkeypatch.setattr(resources.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(
        resources.ray, "get_runtime_context", lambda: Mock(**{"get_node_id.return_value": "b"})
    )
    monkeypatch.setattr(resources, "_internal_kv_get", lambda key, namespace: info.get(key))
    assert resources.live_nodes() == [Node("a", 2, 0), Node("b", 2, 0)]  # not a submitted job
    job = {"metadata": {"job_submission_id": "mine"}}
    monkeypatch.setenv(resources.RAY_JOB_CONFIG_JSON_ENV_VAR, json.dumps(job))
    name = f"b, beside the job's own command ({said})," if said else "b"
    assert resources.live_nodes() == [Node("a", 2, 0), Node(name, left, 0)]
