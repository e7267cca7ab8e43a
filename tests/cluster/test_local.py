"""A cluster of several nodes on one machine: sizes, killed and added nodes, autoscaling, clean-up."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from cluster import local
from cluster.local import ROOT, Autoscaling, LocalCluster, LocalClusterError, NodeSize
from tests.cluster.sockets import documented, is_loopback, listeners


@pytest.mark.unit
@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", NodeSize()),
        ("cpus=2", NodeSize(cpus=2)),
        ("gpus=0.5,cpus=0", NodeSize(cpus=0, gpus=0.5)),
        ("memory=4G,store=1.5m", NodeSize(memory=4 * 2**30, store=3 * 2**19)),
    ],
)
def test_sizes(text: str, size: NodeSize) -> None:
    assert NodeSize.parse(text) == size


@pytest.mark.unit
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("cpu=2", "'cpu' is not one of cpus"),
        ("cpus=2,cpus=3", "'cpus' is not one of .*once"),
        ("cpus=two", "cpus must be a number, not 'two'"),
        ("cpus", "cpus must be a number, not ''"),
        ("gpus=-1", "gpus cannot be -1"),
        ("cpus=inf", "cpus cannot be inf"),
    ],
)
def test_invalid_sizes(text: str, named: str) -> None:
    with pytest.raises(LocalClusterError, match=named):
        NodeSize.parse(text)


@pytest.mark.unit
def test_autoscaling_options() -> None:
    assert Autoscaling.parse(None, None) is None
    assert Autoscaling.parse("cpus=2", None) == Autoscaling(NodeSize(cpus=2), 1)
    assert Autoscaling.parse("gpus=1", 3) == Autoscaling(NodeSize(gpus=1), 3)
    with pytest.raises(LocalClusterError, match=r"--max-workers 2: .* --autoscale"):
        Autoscaling.parse(None, 2)
    with pytest.raises(LocalClusterError, match="--max-workers 0: at least one"):
        Autoscaling.parse("cpus=1", 0)


INSPECT = """
import json, os, sys, ray
ray.init(log_to_driver=False)

@ray.remote
class Actor:
    def place(self): return ray.get_runtime_context().get_node_id(), os.getpid()

def place(**options): return ray.get(Actor.options(**options).remote().place.remote())

actor = Actor.options(num_gpus=1).remote()
node, pid = ray.get(actor.place.remote())
print("seen", json.dumps({"resources": ray.cluster_resources(), "gpu": node, "pid": pid}), flush=True)
sys.stdin.readline()
try:
    ray.get(actor.place.remote(), timeout=60)
    print("seen", json.dumps("answers"), flush=True)
except ray.exceptions.RayActorError:
    print("seen", json.dumps("gone"), flush=True)
sys.stdin.readline()
print("seen", json.dumps(place(num_gpus=1)[0]), flush=True)
"""


def next_seen(lines: IO[str]) -> Any:
    """What INSPECT prints next; Ray prints there, too."""
    return json.loads(next(line for line in lines if line.startswith("seen ")).removeprefix("seen "))


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(["cpus=2", "cpus=1,gpus=1,memory=1G"], dashboard=True) as running:
        yield running


def check_sockets(cluster: LocalCluster) -> None:
    """The table of docs/security.md is true of this cluster, on which an actor runs."""
    found = dict(listeners(cluster.pid))
    assert found.keys() == documented(ROOT / "docs" / "security.md")
    assert all(is_loopback(ip) for ip in found.values()), found
    assert cluster.dashboard.startswith("http://127.0.0.1:")


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_node_is_killed_and_another_added(cluster: LocalCluster) -> None:
    """The tests' own cluster, which runs at the same time, has neither GPUs nor these nodes."""
    driver = subprocess.Popen(
        [sys.executable, "-c", INSPECT],
        env=cluster.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdin is not None
    assert driver.stdout is not None
    try:
        seen = next_seen(driver.stdout)
        assert (seen["resources"]["CPU"], seen["resources"]["GPU"]) == (3, 1)
        assert seen["gpu"] == cluster.nodes["2"].node_id
        check_sockets(cluster)
        cluster.kill_node("2")
        assert set(cluster.nodes) == {"1"}
        assert not psutil.pid_exists(seen["pid"])
        driver.stdin.write("\n")
        driver.stdin.flush()
        assert next_seen(driver.stdout) == "gone"
        added = cluster.add_node("cpus=1,gpus=2")
        assert added.name == "3"
        driver.stdin.write("\n")
        driver.stdin.flush()
        assert next_seen(driver.stdout) == added.node_id
    finally:
        driver.kill()
        driver.wait()


IMPOSSIBLE = """
from pipeline.runtime.connection import ray_connection
from tools_service.base.errors import ConfigurationError
from tools_service.runtime.resources import ProcessRequest, ResourceRequest

def refused(**asked):
    process = ProcessRequest(of="worker", fewer_gpus="lower --gpus", fewer="lower --workers", **asked)
    try:
        with ray_connection(ResourceRequest(processes=(process,), wait_s=3, wait_option="--wait-s")):
            print("it began")
    except ConfigurationError as error:
        print(error)

refused(cpus=1, gpus=8)
refused(cpus=2, gpus=0, count=2)
refused(cpus=0.5, gpus=0, count=4)
"""


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_what_no_node_has_is_named_with_the_option_that_helps(cluster: LocalCluster) -> None:
    """On nodes of 2 and 1 CPUs and a GPU: also the sum of 4 x 0.5 of 3 CPUs fits, that of 2 x 2 does not."""
    done = subprocess.run(
        [sys.executable, "-c", IMPOSSIBLE],
        cwd=ROOT,
        env=cluster.environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=280,
    )
    lines = [line for line in done.stdout.splitlines() if "(raylet)" not in line]  # on nodes lost before
    assert len(lines) == 3
    message = lines[0]
    assert message.startswith("a worker needs 1 CPU and 8 GPUs on one node; 127.0.0.1 (node ")
    assert "1 GPU;" in message
    assert message.endswith(
        ": lower --gpus, or add such a node; none came within 3 s (--wait-s waits longer)"
    )
    assert "there is room for 1 of 2 workers, each 2 CPUs" in lines[1]
    assert "lower --workers" in lines[1]
    assert lines[2] == "it began"


AUTOSCALE = """
import time, ray
from tools_service.runtime.resources import ProcessRequest, ResourceError, ResourceRequest, require_resources
ray.init(log_to_driver=False)

def see(*numbers): print("seen", *numbers, flush=True)

def nodes(): return [node["Resources"] for node in ray.nodes() if node["Alive"]]

@ray.remote(num_gpus=1)
class Holder:
    def where(self): return ray.get_runtime_context().get_node_id()

def ask(count):
    holder = ProcessRequest(of="holder", count=count, cpus=0, gpus=1)
    require_resources(ResourceRequest(processes=(holder,), wait_s=20))

see(len(nodes()))
try:
    ask(3)
except ResourceError as error:
    see("refused", "room for" in str(error) or "needs 1 GPU" in str(error))
ask(2)
see(len(nodes()))
holders = [Holder.remote() for _ in range(3)]
asked = [holder.where.remote() for holder in holders]
there, waiting = ray.wait(asked, num_returns=2, timeout=200)
see(len(set(ray.get(there))), len(waiting))
see(sum(node.get("GPU", 0) for node in nodes()))
del holders, asked, there, waiting
while len(nodes()) > 2: time.sleep(0.5)
see(len(nodes()))
"""


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_nodes_are_started_on_demand_and_ended_when_idle() -> None:
    """Three actors need a GPU each; the autoscaler may start two nodes with one GPU. A step that asks for
    three is refused; one that asks for two waits until the nodes are there."""
    with LocalCluster(["cpus=1"], autoscale="cpus=1,gpus=1", max_workers=2) as cluster:
        finished = subprocess.run(
            [sys.executable, "-c", AUTOSCALE],
            cwd=ROOT,
            env=cluster.environment | {"RAY_SCHEDULER_EVENTS": "0"},  # no messages of the autoscaler
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=380,
        )
        started = psutil.Process(cluster.pid).children(recursive=True)
    seen = [
        line for line in finished.stdout.splitlines() if line.startswith("seen")
    ]  # without the autoscaler's lines
    assert seen == ["seen 2", "seen refused True", "seen 4", "seen 2 1", "seen 2.0", "seen 2"]
    assert started
    assert not any(process.is_running() for process in started)


@pytest.mark.ray
def test_an_unknown_node_cannot_be_killed(cluster: LocalCluster) -> None:
    with pytest.raises(LocalClusterError, match="no node '7': there are 1"):
        cluster.kill_node("7")


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["interrupt", "end of input"])
def test_the_command_prints_how_to_join_and_cleans_up(how: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.local", "--no-dashboard", "--nodes", "cpus=1"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Background processes of a shell ignore interrupts, and their children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(9)]
    said = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert list(said) == ["starting", "address", "prometheus", "node", "ready.", "export", "stop"]
    address = said["address"][1]
    variables = dict(part.split("=") for part in said["export"][1:])
    assert (variables["RAY_ADDRESS"], variables["RAY_AUTH_MODE"]) == (address, "token")
    assert Path(said["prometheus"][1]).name == "prom_metrics_service_discovery.json"
    started = psutil.Process(process.pid).children(recursive=True)
    store = next(
        part for child in started for part in child.cmdline() if part.startswith("--store_socket_name=")
    )
    folder = Path(store.partition("=")[2]).parents[3]
    process.stdin.write("kill 7\nfly\n")
    process.stdin.flush()
    assert "no node '7': there are 1" in process.stdout.readline()
    assert "fly" in process.stdout.readline()
    if how == "interrupt":
        process.send_signal(signal.SIGINT)
    else:
        process.stdin.close()
    assert process.wait(60) == (130 if how == "interrupt" else 0)
    process.stdout.close()
    process.stdin.close()
    assert started
    assert not any(process.is_running() for process in started)
    assert folder.name.startswith("ray")
    assert not folder.exists()


@pytest.mark.unit
@pytest.mark.parametrize(("length", "is_short"), [(20, True), (25, True), (26, False), (60, False)])
def test_the_folder_of_a_cluster_is_short_enough_for_sockets(
    monkeypatch: pytest.MonkeyPatch, length: int, is_short: bool
) -> None:
    named = "/" + "t" * (length - 1)
    monkeypatch.setattr(tempfile, "tempdir", named)
    assert local._parent() == (named if is_short else "/tmp")


@pytest.mark.unit
def test_an_invalid_size_is_reported_before_anything_is_started() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "cluster.local", "--nodes", "cpus=2", "disks=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "'disks' is not one of" in finished.stderr
