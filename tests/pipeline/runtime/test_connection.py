"""Which cluster a step gets, and what it says where it would wait for ever. Ray itself is stood in for."""

from __future__ import annotations

import gc
import os
import signal
import weakref
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import ray
from ray._private import ray_constants, services

from pipeline.runtime.connection import (
    are_free,
    end_local_cluster,
    max_readers,
    one_local_cluster,
    ray_connection,
)
from tools_service.base.errors import ConfigurationError
from tools_service.runtime import address, connection, resources
from tools_service.runtime.resources import Node, ProcessRequest, ResourceRequest

pytestmark = pytest.mark.unit

WORKER = ProcessRequest(of="worker", count=2, cpus=2.25, gpus=1, fewer="ask for fewer")
NEEDS = ResourceRequest(processes=(WORKER,), wait_s=0)


class FakeRay:
    """Remembers what it was asked; has the resources it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **amounts: float) -> None:
        self.asked: list[Any] = []
        self.running = False
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(os, "environ", os.environ.copy())  # put back afterwards
        monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        monkeypatch.setattr(connection, "require_cluster", lambda *_: None)
        monkeypatch.setattr(connection, "start_reaper", lambda: None)
        monkeypatch.setattr(ray, "is_initialized", lambda: self.running)
        monkeypatch.setattr(ray, "init", self.init)
        monkeypatch.setattr(ray, "shutdown", self.shutdown)
        monkeypatch.setattr(ray, "cluster_resources", lambda: amounts)
        node = Node("head", amounts.get("CPU", 0), amounts.get("GPU", 0))
        monkeypatch.setattr(resources, "live_nodes", lambda: [node])
        monkeypatch.setattr(resources, "own_gpus", lambda: amounts.get("GPU", 0))
        monkeypatch.setattr(resources, "_nodes_are_coming", lambda: False)
        monkeypatch.setattr(resources, "_demand", lambda _: nullcontext())

    def init(self, address: str, num_cpus: int | None = None, **_: Any) -> None:
        if address == "nowhere:1":
            raise ConnectionError("nobody answers")
        self.asked.append((address, num_cpus))
        self.running = True

    def shutdown(self) -> None:
        self.asked.append("shutdown")
        self.running = False


@pytest.mark.parametrize("variable", [None, "", "local"])
def test_a_local_cluster_has_the_cpus_that_are_needed_and_ends_with_the_step(
    monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    monkeypatch.setattr("pipeline.runtime.connection.available_cpus", lambda: 2)
    there = FakeRay(monkeypatch, CPU=5, GPU=2)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    with ray_connection(NEEDS):
        assert there.asked == [("local", 5)]
    assert there.asked[1:] == ["shutdown"]


def test_a_machine_without_the_gpus_is_refused_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    there = FakeRay(monkeypatch, CPU=5)
    message = r"a worker needs 2.25 CPUs and 1 GPU .*this machine has 0 GPUs"
    with pytest.raises(ConfigurationError, match=message), ray_connection(NEEDS):
        pytest.fail("it began")
    assert there.asked == []


@pytest.mark.parametrize(
    ("free", "fits"), [({"CPU": 4.5, "GPU": 2}, True), ({"CPU": 9}, False), ({"CPU": 4, "GPU": 2}, False)]
)
def test_what_is_free_is_compared_with_what_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, free: dict[str, float], fits: bool
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "available_resources", lambda: free)
    assert are_free(NEEDS) is fits
    assert not are_free(NEEDS, "head:6379"), "others may ask for the same"


@pytest.mark.parametrize("named", ["configuration", "variable"])
def test_a_named_cluster_is_joined_and_left_if_it_is_too_small(
    monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    there = FakeRay(monkeypatch, CPU=4, GPU=2)
    if named == "variable":
        monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    address = "head:6379" if named == "configuration" else None
    message = "room for 1 of 2 workers, .*head has 1.75 CPUs left: ask for fewer, or add such a node"
    with pytest.raises(ConfigurationError, match=message), ray_connection(NEEDS, address):
        pytest.fail("it began")
    assert there.asked == [("head:6379", None), "shutdown"]
    with ray_connection(replace(NEEDS, processes=(replace(WORKER, least=1),)), address):
        assert there.asked[2:] == [("head:6379", None)]


def test_a_cluster_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay(monkeypatch)
    message = "ray.address nowhere:1: cannot join the Ray cluster there: nobody answers; compare the versions"
    with pytest.raises(ConfigurationError, match=message), ray_connection(NEEDS, "nowhere:1"):
        pytest.fail("it began")


@pytest.mark.parametrize("named", ["head", "http://head:8265", "ray://", "127.0.0.1:0"])
def test_an_address_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    there = FakeRay(monkeypatch)
    monkeypatch.setattr(connection, "require_cluster", address.require_cluster)
    with (
        pytest.raises(ConfigurationError, match=r"ray.address .*: .*; name HOST:PORT"),
        ray_connection(NEEDS, named),
    ):
        pytest.fail("it began")
    assert there.asked == []


def test_what_an_earlier_run_left_in_cycles_is_gone_when_the_next_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray ends an actor when nothing refers to it, and Ray Data's cycles refer to those of a run."""

    class Held:
        def __init__(self) -> None:
            self.itself = self

    there = FakeRay(monkeypatch, CPU=8, GPU=2)
    there.running = True
    gc.disable()
    try:
        held = weakref.ref(Held())
        assert held() is not None
        with ray_connection(NEEDS):
            assert held() is None
    finally:
        gc.enable()


def test_a_local_cluster_is_on_loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay(monkeypatch, CPU=8, GPU=2)
    with ray_connection(NEEDS):
        assert ray_constants.ENABLE_RAY_CLUSTER is False
        assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
        assert os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0"


@pytest.mark.parametrize(
    "error", [Exception("two\n lines"), OSError("no"), RuntimeError("x" * 9_000), ValueError()]
)
def test_a_local_cluster_that_does_not_start_costs_a_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(**_: Any) -> None:
        raise error

    FakeRay(monkeypatch, CPU=5, GPU=2)
    monkeypatch.setattr(ray, "init", refuse)
    with (
        pytest.raises(ConfigurationError, match="Ray does not start on this machine: ") as caught,
        ray_connection(NEEDS),
    ):
        pytest.fail("it began")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_auto_without_a_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: Any) -> str:
        raise ConnectionError("Could not find any running Ray instance.")

    FakeRay(monkeypatch)
    monkeypatch.setattr(services, "get_ray_address_from_environment", nothing)
    with (
        pytest.raises(ConfigurationError, match="auto: no Ray cluster runs on this machine"),
        ray_connection(NEEDS, "auto"),
    ):
        pytest.fail("it began")


def test_a_connection_that_is_there_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    there = FakeRay(monkeypatch, CPU=8, GPU=8)
    there.running = True
    with ray_connection(NEEDS, "another:6379"):
        pass
    assert there.asked == []


def test_steps_of_one_command_share_a_local_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.runtime.connection.available_cpus", lambda: 2)
    there = FakeRay(monkeypatch, CPU=5, GPU=2)
    smaller = ResourceRequest(processes=(replace(WORKER, gpus=0, count=1),))
    with one_local_cluster():
        for request in (NEEDS, smaller, NEEDS):
            with ray_connection(request):
                assert there.asked == [("local", 5)]
        assert there.running
    assert there.asked == [("local", 5), "shutdown"]
    with ray_connection(NEEDS):  # outside, as before
        pass
    assert there.asked[2:] == [("local", 5), "shutdown"]


def test_a_shared_cluster_ends_when_a_step_fails_or_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    there = FakeRay(monkeypatch, CPU=5, GPU=2)
    with pytest.raises(ValueError, match="the step"), one_local_cluster(), ray_connection(NEEDS):
        raise ValueError("the step")
    assert not there.running
    with one_local_cluster():
        with ray_connection(NEEDS):
            pass
        end_local_cluster()
        assert not there.running
    assert there.asked.count("shutdown") == 2


@pytest.mark.parametrize("other", ["larger", "elsewhere"])
def test_a_step_that_a_shared_cluster_cannot_run_gets_its_own(
    monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    monkeypatch.setattr("pipeline.runtime.connection.available_cpus", lambda: 2)
    there = FakeRay(monkeypatch, CPU=5, GPU=2)
    larger = ResourceRequest(processes=(ProcessRequest(of="worker", count=9, cpus=1),))
    with one_local_cluster():
        with ray_connection(NEEDS):
            pass
        if other == "larger":
            monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(there.asked[-1][1])})
            with ray_connection(larger):
                assert there.asked == [("local", 5), "shutdown", ("local", 9)]
        else:
            with ray_connection(NEEDS, "head:6379"):
                assert there.asked == [("local", 5), "shutdown", ("head:6379", None)]
            assert there.asked[-1] == "shutdown"
    assert not there.running
    assert there.asked.count("shutdown") == 2


@pytest.mark.parametrize(
    ("cpus", "actors", "inputs", "readers"),
    [(3, 2, 9, 2), (64, 2, 999, 59), (64, 99, 999, 99), (0, 1, 9, 1), (64, 2, 5, 5), (64, 2, 0, 1)],
)
def test_readers_use_the_cpus_that_are_left(
    monkeypatch: pytest.MonkeyPatch, cpus: float, actors: int, inputs: int, readers: int
) -> None:
    FakeRay(monkeypatch, CPU=cpus)
    assert max_readers(replace(NEEDS, other_cpus=3), actors, inputs) == readers
