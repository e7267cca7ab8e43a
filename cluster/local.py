"""A Ray cluster of several nodes on one machine.

    python -m cluster.local --nodes cpus=2 cpus=2,gpus=1

For trying out scheduling, node failures and autoscaling without a second machine. In: the CPUs,
GPUs and memory of each node, all simulated. Out, line by line: the address of a head that runs no
work, the dashboard, the file by which Prometheus finds the nodes, the nodes, and what another shell
needs to join or to submit jobs. Then commands are read from standard input (COMMANDS). With
--autoscale, Ray's autoscaler starts nodes on demand and ends idle ones. Ctrl-C, SIGTERM or the end
of standard input stops all processes and removes all files. All ports are on loopback, and free
ports are chosen, so that other clusters on the machine are not disturbed. Ray asks for its token,
as on a cluster of several machines. A process that joins needs the variables that are printed,
because otherwise Ray takes 127.0.0.1 for the machine's address.

`LocalCluster` does the same for programs. Why not `ray start`: docs/decisions/0015.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import psutil
import yaml

from tools_service.runtime.surroundings import provide_token, too_long_for_sockets

ROOT = Path(__file__).parents[1]
COMMANDS = "commands: add cpus=2,gpus=1 | kill NODE"

# What Ray's head writes, for `file_sd_configs` of Prometheus.
DISCOVERY = "prom_metrics_service_discovery.json"

# Variables of the ports that Ray itself does not choose.
METRICS_PORTS = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")

# How this cluster asks for its token, and where that is; never the token itself.
PASSED_ON = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")

# Makes Ray use loopback only, as on systems for which it does not support clusters.
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

_LOOPBACK = "127.0.0.1"
_START_TIMEOUT_S = 180.0  # of a raylet and its agents, and of the dashboard, on a busy machine
_STORE_BYTES = 128 * 2**20
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
_SET_CHILD_SUBREAPER = 36  # prctl(2)
_IDLE_TIMEOUT_MINUTES = 0.25  # of a node that the autoscaler started
_AUTOSCALER_INTERVAL_S = 1
_HEAD_TYPE = "ray.head.default"


class LocalClusterError(Exception):
    """An invalid node size, an unknown node, or a cluster that did not start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSize:
    """The resources of a node, simulated but for the object store; memory in bytes."""

    cpus: float = 1
    gpus: float = 0
    memory: int | None = None
    store: int = _STORE_BYTES

    @classmethod
    def parse(cls, text: str) -> NodeSize:
        """From cpus=2,gpus=1,memory=4G,store=200M, each at most once. LocalClusterError if invalid."""
        values: dict[str, float | int] = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            if name not in cls.__slots__ or name in values:
                raise LocalClusterError(f"{text!r}: {name!r} is not one of {', '.join(cls.__slots__)}, once")
            try:
                values[name] = _bytes(value) if name in ("memory", "store") else float(value)
            except ValueError as error:
                raise LocalClusterError(f"{text!r}: {name} must be a number, not {value!r}") from error
            if not 0 <= values[name] < float("inf"):
                raise LocalClusterError(f"{text!r}: {name} cannot be {value}")
        return cls(**values)  # type: ignore[arg-type]

    def __str__(self) -> str:
        parts = [f"cpus={self.cpus:g}", f"gpus={self.gpus:g}"]
        return ",".join(parts + [f"memory={self.memory}"] * (self.memory is not None))


def _bytes(text: str) -> int:
    unit = _UNITS.get(text[-1:].upper())
    return int(text) if unit is None else int(float(text[:-1]) * unit)


@dataclass(frozen=True, slots=True)
class LocalNode:
    """A running node."""

    name: str
    node_id: str
    """Ray's id, hexadecimal."""
    pid: int
    """The process id of its raylet, the ancestor of all processes of the node."""


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """Nodes of one size that Ray's autoscaler starts on demand."""

    size: NodeSize
    max_workers: int

    @classmethod
    def parse(cls, size: str | None, max_workers: int | None) -> Autoscaling | None:
        """From the options; None without --autoscale. LocalClusterError if invalid."""
        if size is None and max_workers is not None:
            raise LocalClusterError(f"--max-workers {max_workers}: give the nodes' size with --autoscale")
        if max_workers is not None and max_workers < 1:
            raise LocalClusterError(f"--max-workers {max_workers}: at least one node")
        return None if size is None else cls(NodeSize.parse(size), max_workers or 1)

    def head_options(self) -> dict[str, Any]:
        """Options of a head with this autoscaler; also sets variables for the processes of the
        head.

        Ray's own provider of simulated nodes starts the raylets. It is configured as an external
        provider, because Ray's wheel lacks the defaults for its own name.
        """
        from ray import autoscaler
        from ray.autoscaler._private.fake_multi_node import node_provider

        head_id = node_provider.FAKE_HEAD_NODE_ID
        size, port = self.size, _free_port()
        resources: dict[str, float] = {"CPU": size.cpus, "GPU": size.gpus, "object_store_memory": size.store}
        if size.memory is not None:
            resources["memory"] = size.memory
        # This file has every field.
        defaults = Path(autoscaler.__file__).parent / "_private/readonly/defaults.yaml"
        config = yaml.safe_load(defaults.read_text(encoding="utf-8")) | {
            "cluster_name": "local",
            "max_workers": self.max_workers,
            "idle_timeout_minutes": _IDLE_TIMEOUT_MINUTES,
            "provider": {
                "type": "external",
                "module": f"{node_provider.__name__}.FakeMultiNodeProvider",
                "gcs_address": f"{_LOOPBACK}:{port}",
                "head_node_id": head_id,
                "launch_multiple": True,
                "disable_node_updaters": True,
            },
            "head_node_type": _HEAD_TYPE,
            "available_node_types": {
                _HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "autoscaled": {
                    "resources": resources,
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": self.max_workers,
                },
            },
        }
        file = Path(os.environ["RAY_TMPDIR"]) / "autoscaling.json"
        file.write_text(json.dumps(config), encoding="ascii")
        os.environ |= {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": str(_AUTOSCALER_INTERVAL_S),
        }
        head_variables = {"RAY_CLOUD_INSTANCE_ID": head_id, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head_id}
        return {"autoscaling_config": str(file), "gcs_server_port": port, "env_vars": head_variables}


class LocalCluster:
    """A cluster for the duration of a `with` block, in processes of its own.

    The processes end with the block, and also if this process is killed inside the block.
    """

    def __init__(
        self,
        nodes: Sequence[str],
        *,
        dashboard: bool = False,
        autoscale: str | None = None,
        max_workers: int = 1,
    ) -> None:
        """`nodes` has a size for NodeSize.parse per node. With `autoscale`, the autoscaler starts
        at most `max_workers` nodes of that size. Errors (LocalClusterError) are raised when the
        block is entered.
        """
        self._arguments = ["--nodes", *nodes, "--dashboard" if dashboard else "--no-dashboard"]
        if autoscale is not None:
            self._arguments += ["--autoscale", autoscale, "--max-workers", str(max_workers)]
        self.address = ""
        """For RAY_ADDRESS, and for ray.init if Ray was imported with LOOPBACK_ONLY set."""
        self.dashboard = ""
        """Its URL, if there is one."""
        self._variables: dict[str, str] = {}
        self.nodes: dict[str, LocalNode] = {}
        """By name: "1", "2", … in the order in which they were started."""

    @property
    def pid(self) -> int:
        """The id of the process that is the ancestor of all others."""
        return self._process.pid

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process that joins the cluster."""
        return {**os.environ, **self._variables}

    def __enter__(self) -> LocalCluster:
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cluster.local", *self._arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # Ctrl-C reaches only this process, which then ends the block
        )
        try:
            self.address = self._wait_for("address")[0]
            self._variables = dict(part.split("=", 1) for part in self._wait_for("export"))
            self._wait_for("stop")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def add_node(self, size: str) -> LocalNode:
        """Add a node and wait until it is ready. LocalClusterError for an invalid size."""
        NodeSize.parse(size)
        self._send(f"add {size}")
        return self.nodes[self._wait_for("node")[0]]

    def kill_node(self, name: str) -> None:
        """SIGKILL to all processes of the node at once. LocalClusterError if there is no such node."""
        if name not in self.nodes:
            raise LocalClusterError(f"no node {name!r}: there are {', '.join(self.nodes) or 'none'}")
        self._send(f"kill {name}")
        self._wait_for("killed")

    def stop(self) -> None:
        """End all processes and remove all files of the cluster."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()
        self.nodes.clear()

    def _send(self, command: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # _wait_for raises the reason
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()

    def _wait_for(self, event: str) -> list[str]:
        """The rest of the line that reports `event`. LocalClusterError for an error or the end."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            reported, *rest = line.split() or [""]
            if reported == "node":
                self.nodes[rest[0]] = LocalNode(rest[0], rest[1], int(rest[2]))
            elif reported == "dashboard":
                self.dashboard = rest[0]
            elif reported == "killed":
                del self.nodes[rest[0]]
            if reported == event:
                return rest
            if reported == "error":
                raise LocalClusterError(" ".join(rest))
        self._process.wait()
        self._errors.seek(0)
        raise LocalClusterError(f"the cluster ended: {self._errors.read()[-2_000:].decode(errors='replace')}")


class _Nodes:
    """The nodes that this process has started."""

    def __init__(self, dashboard: bool, autoscaling: Autoscaling | None = None) -> None:
        print("starting the head, which takes some seconds …", flush=True)
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(shutdown_at_exit=False)
        self._by_name: dict[str, Any] = {}
        self._started = 0
        self.dashboard = ""
        for variable in METRICS_PORTS:
            os.environ[variable] = str(_free_port())
        head = {"dashboard_port": _free_port(), "dashboard_agent_listen_port": 0}
        head |= autoscaling.head_options() if autoscaling else {}
        self._add(NodeSize(cpus=0), include_dashboard=dashboard, ray_client_server_port=None, **head)
        self.address = self._cluster.address
        print(f"address {self.address}", flush=True)
        if dashboard:
            self.dashboard = f"http://{self._cluster.webui_url}"
            print(f"dashboard {self.dashboard}", flush=True)
        print(f"prometheus {self._cluster.head_node.get_temp_dir_path()}/{DISCOVERY}", flush=True)

    def add(self, size: NodeSize) -> None:
        self._started += 1
        print(f"starting node {self._started}: {size} …", flush=True)
        node = self._add(size)
        name = str(self._started)
        self._by_name[name] = node
        print(f"node {name} {node.node_id} {_raylet(node)} {size}", flush=True)

    def _add(self, size: NodeSize, **options: Any) -> Any:
        node = self._cluster.add_node(
            wait=False,
            node_ip_address=_LOOPBACK,
            num_cpus=size.cpus,
            num_gpus=size.gpus,
            memory=size.memory,
            object_store_memory=size.store,
            # Of its own: a node removes the folder of a job's files before it unpacks them.
            runtime_env_dir_name=f"runtime_resources_{self._started}",
            **options,
        )
        self._cluster._wait_for_node(node, timeout=_START_TIMEOUT_S)  # add_node itself waits only 30 s
        return node

    def kill(self, name: str) -> None:
        if name not in self._by_name:
            raise LocalClusterError(f"no node {name!r}: there are {', '.join(self._by_name) or 'none'}")
        node = self._by_name.pop(name)
        raylet = psutil.Process(_raylet(node))
        raylet.suspend()  # so that it starts no new workers
        _kill([raylet, *raylet.children(recursive=True)])
        self._cluster.remove_node(node, allow_graceful=False)
        print(f"killed {name}", flush=True)


def _raylet(node: Any) -> int:
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((_LOOPBACK, 0))
        port: int = free.getsockname()[1]
    return port


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=30)


def _parent() -> str:
    """Where the cluster's folder is made: TMPDIR, or /tmp if the sockets' paths would be too long there."""
    usual = tempfile.gettempdir()
    made = Path(usual, f"ray{'x' * 8}", "ray")  # tempfile adds eight characters, and Ray its own folder
    return "/tmp" if too_long_for_sockets(made) else usual


@contextmanager
def _cleaning_up() -> Iterator[None]:
    """Set up a folder for Ray; after the block, remove it and all processes started in it."""
    # Orphaned processes become our children, so that we find them after their raylet is killed.
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update(LOOPBACK_ONLY)
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_DASHBOARD_STARTUP_TIMEOUT_S", f"{_START_TIMEOUT_S:.0f}")
    # A submitted job's `python` is this one, also where its environment is not activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    with tempfile.TemporaryDirectory(prefix="ray", dir=_parent(), ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder  # keeps `ray.init()` elsewhere from finding this cluster
        os.environ["TMPDIR"] = folder  # of the dashboard's own sockets, which it leaves when it is killed
        provide_token()
        if token := os.environ.get("RAY_AUTH_TOKEN"):  # only in the environment: others read it from here
            file = Path(folder, "auth_token")
            file.touch(mode=0o600)
            file.write_text(token, encoding="ascii")
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(file)
        try:
            yield
        finally:
            while children := psutil.Process().children(recursive=True):
                _kill(children)


def serve(
    sizes: Sequence[NodeSize],
    commands: Iterator[str],
    dashboard: bool,
    autoscaling: Autoscaling | None = None,
) -> None:
    """Start a cluster, report its address and nodes, execute commands, and stop it when they end."""
    with _cleaning_up():
        nodes = _Nodes(dashboard, autoscaling)
        for size in sizes:
            nodes.add(size)
        variables = {"RAY_ADDRESS": nodes.address, **LOOPBACK_ONLY}
        variables |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        print("\nready. To run commands on it, paste this line into any shell of yours:", flush=True)
        print("export " + " ".join(f"{name}={value}" for name, value in variables.items()), flush=True)
        if nodes.dashboard:
            print(
                f"then, for example: make submit ADDRESS={nodes.dashboard} RECIPE=demo "
                'ARGS="--output $PWD/runs/submitted"',
                flush=True,
            )
        print(f"stop with Ctrl-C; {COMMANDS}", flush=True)
        for line in commands:
            verb, _, rest = line.strip().partition(" ")
            try:
                if verb == "add":
                    nodes.add(NodeSize.parse(rest))
                elif verb == "kill":
                    nodes.kill(rest)
                elif verb:
                    raise LocalClusterError(f"unknown command {verb!r}; {COMMANDS}")
            except LocalClusterError as error:
                print(f"error {error}", flush=True)


def _stdin() -> Iterator[str]:
    """The lines of standard input. Without one (nohup, a service), wait for a signal instead."""
    is_open = sys.stdin is not None and not sys.stdin.closed
    if is_open and os.fstat(0).st_rdev != Path(os.devnull).stat().st_rdev:
        yield from sys.stdin
        return
    signal.pause()


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.local", description="Run a Ray cluster of several nodes on this machine."
    )
    parser.add_argument(
        "--nodes", nargs="*", default=["cpus=2", "cpus=2"], metavar="cpus=2,gpus=1,memory=4G,store=200M"
    )
    parser.add_argument(
        "--dashboard", action=argparse.BooleanOptionalAction, default=True, help="Ray's dashboard"
    )
    parser.add_argument(
        *("--autoscale", "--grow"),
        metavar="cpus=2,gpus=1",
        help="size of nodes that the autoscaler may start",
    )
    parser.add_argument("--max-workers", "--most", type=int, help="most of these nodes at once (1)")
    arguments = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        autoscaling = Autoscaling.parse(arguments.autoscale, arguments.max_workers)
        sizes = [NodeSize.parse(size) for size in arguments.nodes]
        serve(sizes, _stdin(), arguments.dashboard, autoscaling)
    except KeyboardInterrupt:
        return 130
    except LocalClusterError as error:
        print(f"python -m cluster.local: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
