"""A cluster of several nodes on one machine, what it shows, what goes, what comes, what is left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from cluster.local import ROOT, Growth, LocalCluster, LocalClusterError, NodeSize


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
        ("cpus=two", "cpus wants a number, not 'two'"),
        ("cpus", "cpus wants a number, not ''"),
        ("gpus=-1", "gpus cannot be -1"),
        ("cpus=inf", "cpus cannot be inf"),
    ],
)
def test_sizes_that_are_none(text: str, named: str) -> None:
    with pytest.raises(LocalClusterError, match=named):
        NodeSize.parse(text)


@pytest.mark.unit
def test_growth() -> None:
    assert Growth.parse(None, None) is None
    assert Growth.parse("cpus=2", None) == Growth(NodeSize(cpus=2), 1)
    assert Growth.parse("gpus=1", 3) == Growth(NodeSize(gpus=1), 3)
    with pytest.raises(LocalClusterError, match=r"--most 2: of what\? --grow"):
        Growth.parse(None, 2)
    with pytest.raises(LocalClusterError, match="--most 0: at least one"):
        Growth.parse("cpus=1", 0)


LOOK = """
import json, os, sys, psutil, ray
ray.init(log_to_driver=False)

@ray.remote
class Here:
    def of(self): return ray.get_runtime_context().get_node_id(), os.getpid()

def ask(**options): return ray.get(Here.options(**options).remote().of.remote())

held = Here.options(num_gpus=1).remote()
node, pid = ray.get(held.of.remote())
mine = {process.pid for process in psutil.Process(int(sys.argv[1])).children(recursive=True)}
ips = {one.laddr.ip for pid in mine for one in psutil.Process(pid).net_connections("inet")
         if one.status == psutil.CONN_LISTEN}
print(json.dumps({"resources": ray.cluster_resources(), "gpu": node, "pid": pid, "ips": sorted(ips)}),
      flush=True)
sys.stdin.readline()
try:
    ray.get(held.of.remote(), timeout=60)
    print(json.dumps("answers"), flush=True)
except ray.exceptions.RayActorError:
    print(json.dumps("gone"), flush=True)
sys.stdin.readline()
print(json.dumps(ask(num_gpus=1)[0]), flush=True)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(["cpus=2", "cpus=1,gpus=1,memory=1G"]) as running:
        yield running


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_node_goes_and_another_comes(cluster: LocalCluster) -> None:
    """Beside it runs the tests' own cluster, which has neither GPUs nor these nodes."""
    driver = subprocess.Popen(
        [sys.executable, "-c", LOOK, str(cluster.pid)],
        env=cluster.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdin is not None
    assert driver.stdout is not None
    try:
        seen = json.loads(driver.stdout.readline())
        assert (seen["resources"]["CPU"], seen["resources"]["GPU"]) == (3, 1)
        assert seen["gpu"] == cluster.nodes["2"].node_id
        assert all(address in ("127.0.0.1", "::ffff:127.0.0.1") for address in seen["ips"])
        cluster.kill_node("2")
        assert set(cluster.nodes) == {"1"}
        assert not psutil.pid_exists(seen["pid"])
        driver.stdin.write("\n")
        driver.stdin.flush()
        assert json.loads(driver.stdout.readline()) == "gone"
        added = cluster.add_node("cpus=1,gpus=2")
        assert added.name == "3"
        driver.stdin.write("\n")
        driver.stdin.flush()
        assert json.loads(driver.stdout.readline()) == added.node_id
    finally:
        driver.kill()
        driver.wait()


GROW = """
import time, ray
ray.init(log_to_driver=False)

def see(*numbers): print("seen", *numbers, flush=True)

def nodes(): return [node["Resources"] for node in ray.nodes() if node["Alive"]]

@ray.remote(num_gpus=1)
class Holder:
    def where(self): return ray.get_runtime_context().get_node_id()

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
def test_nodes_come_where_they_are_wanted_and_go_when_they_idle() -> None:
    """Three actors want a GPU each; there is none, and there may be two nodes with one."""
    with LocalCluster(["cpus=1"], grow="cpus=1,gpus=1", most=2) as cluster:
        done = subprocess.run(
            [sys.executable, "-c", GROW],
            env=cluster.environment
            | {"RAY_SCHEDULER_EVENTS": "0"},  # what the autoscaler does, in the output
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=380,
        )
        started = psutil.Process(cluster.pid).children(recursive=True)
    seen = [line for line in done.stdout.splitlines() if line.startswith("seen")]  # the autoscaler talks too
    assert seen == ["seen 2", "seen 2 1", "seen 2.0", "seen 2"]
    assert started
    assert not any(one.is_running() for one in started)


@pytest.mark.ray
def test_a_node_that_is_not_there_cannot_be_killed(cluster: LocalCluster) -> None:
    with pytest.raises(LocalClusterError, match="no node '7': there are 1"):
        cluster.kill_node("7")


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["interrupt", "end of input"])
def test_the_command_says_how_to_join_and_leaves_nothing(how: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.local", "--nodes", "cpus=1"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # What a shell runs in the background has interrupts ignored, and its children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    assert [line.split()[0] for line in lines] == ["address", "node", "ready", "stop"]
    address = lines[0].split()[1]
    assert f"RAY_ADDRESS={address}" in lines[2]
    started = psutil.Process(process.pid).children(recursive=True)
    store = next(part for one in started for part in one.cmdline() if part.startswith("--store_socket_name="))
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
    assert not any(one.is_running() for one in started)
    assert folder.name.startswith("ray")
    assert not folder.exists()


@pytest.mark.unit
def test_a_wrong_size_is_said_before_anything_is_started() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster.local", "--nodes", "cpus=2", "disks=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "'disks' is not one of" in done.stderr
