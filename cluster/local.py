"""A Ray cluster of several nodes on one machine: python -m cluster.local --nodes cpus=2 cpus=2,gpus=1

To see scheduling, nodes that go away and nodes that come, without a second machine. In: the nodes' CPUs, GPUs
and memory, all of them pretended. Out, line by line: the address of a head that does no work, and the nodes;
then commands are read (COMMANDS). With --grow, Ray's autoscaler starts nodes that are wanted, and ends those
that idle. Ctrl-C, SIGTERM or the end of standard input stops everything and removes what it wrote. All ports
are on loopback, and chosen so that other clusters on the machine do not mind. Who joins it needs two
variables, which are printed: Ray takes 127.0.0.1 for the machine's address otherwise.

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

ROOT = Path(__file__).parents[1]
COMMANDS = "commands: add cpus=2,gpus=1 | kill NODE"

# Ray's word for "loopback only": what it does on systems where it has no clusters.
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

_LOOPBACK = "127.0.0.1"
_PATIENCE_S = 180.0  # a raylet and its agents, on a busy machine
_STORE_BYTES = 128 * 2**20
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
_SET_CHILD_SUBREAPER = 36  # prctl(2)
_IDLE_MINUTES = 0.25  # then a node that the autoscaler started goes
_UPDATE_S = 1  # how often the autoscaler looks
_HEAD_TYPE = "ray.head.default"


class LocalClusterError(Exception):
    """A node that cannot be, or a cluster that did not start; the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSize:
    """What a node says it has. `memory` and `store` (the object store, which is real) are in bytes."""

    cpus: float = 1
    gpus: float = 0
    memory: int | None = None
    store: int = _STORE_BYTES

    @classmethod
    def parse(cls, text: str) -> NodeSize:
        """From cpus=2,gpus=1,memory=4G,store=200M, each at most once. LocalClusterError if it is not that."""
        wanted: dict[str, float | int] = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            if name not in cls.__slots__ or name in wanted:
                raise LocalClusterError(f"{text!r}: {name!r} is not one of {', '.join(cls.__slots__)}, once")
            try:
                wanted[name] = _bytes(value) if name in ("memory", "store") else float(value)
            except ValueError as error:
                raise LocalClusterError(f"{text!r}: {name} wants a number, not {value!r}") from error
            if not 0 <= wanted[name] < float("inf"):
                raise LocalClusterError(f"{text!r}: {name} cannot be {value}")
        return cls(**wanted)  # type: ignore[arg-type]

    def __str__(self) -> str:
        shown = [f"cpus={self.cpus:g}", f"gpus={self.gpus:g}"]
        return ",".join(shown + [f"memory={self.memory}"] * (self.memory is not None))


def _bytes(text: str) -> int:
    unit = _UNITS.get(text[-1:].upper())
    return int(text) if unit is None else int(float(text[:-1]) * unit)


@dataclass(frozen=True, slots=True)
class LocalNode:
    """A running node."""

    name: str
    node_id: str
    """Ray's, hexadecimal."""
    pid: int
    """Of its raylet, the ancestor of every other process of the node."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Nodes that Ray's autoscaler starts where they are wanted, at most so many."""

    size: NodeSize
    most: int

    @classmethod
    def parse(cls, size: str | None, most: int | None) -> Growth | None:
        """From what the command was given, if anything. LocalClusterError if it makes no sense."""
        if size is None and most is not None:
            raise LocalClusterError(f"--most {most}: of what? --grow gives the size")
        if most is not None and most < 1:
            raise LocalClusterError(f"--most {most}: at least one node")
        return None if size is None else cls(NodeSize.parse(size), most or 1)

    def head(self) -> dict[str, Any]:
        """What a head needs for it, and what its processes find in their environment.

        Nodes come from Ray's own provider of pretended nodes, which starts raylets. It is named as one from
        outside because Ray's wheel lacks the defaults that belong to its name.
        """
        from ray import autoscaler
        from ray.autoscaler._private.fake_multi_node import node_provider

        head_id = node_provider.FAKE_HEAD_NODE_ID
        size, port = self.size, _free_port()
        resources: dict[str, float] = {"CPU": size.cpus, "GPU": size.gpus, "object_store_memory": size.store}
        if size.memory is not None:
            resources["memory"] = size.memory
        whole = (
            Path(autoscaler.__file__).parent / "_private/readonly/defaults.yaml"
        )  # has every field there is
        config = yaml.safe_load(whole.read_text(encoding="utf-8")) | {
            "cluster_name": "local",
            "max_workers": self.most,
            "idle_timeout_minutes": _IDLE_MINUTES,
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
                "grown": {
                    "resources": resources,
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": self.most,
                },
            },
        }
        file = Path(os.environ["RAY_TMPDIR"]) / "autoscaling.json"
        file.write_text(json.dumps(config), encoding="ascii")
        os.environ |= {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": str(_UPDATE_S),
        }
        own = {"RAY_CLOUD_INSTANCE_ID": head_id, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head_id}
        return {"autoscaling_config": str(file), "gcs_server_port": port, "env_vars": own}


class LocalCluster:
    """A cluster for the length of a `with` block, in processes of its own.

    The processes end with the block, and also if this process is killed inside it.
    """

    def __init__(
        self, nodes: Sequence[str], *, dashboard: bool = False, grow: str | None = None, most: int = 1
    ) -> None:
        """`nodes`: what NodeSize.parse takes, one each; the autoscaler starts at most `most` of size `grow`.

        LocalClusterError when the block is entered.
        """
        self._arguments = ["--nodes", *nodes, *["--dashboard"] * dashboard]
        if grow is not None:
            self._arguments += ["--grow", grow, "--most", str(most)]
        self.address = ""
        """For RAY_ADDRESS and, where Ray was imported with LOOPBACK_ONLY set, for ray.init."""
        self.nodes: dict[str, LocalNode] = {}
        """By name: "1", "2", … in the order of their start."""

    @property
    def pid(self) -> int:
        """Of the process that is the ancestor of all others."""
        return self._process.pid

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a process that joins."""
        return {**os.environ, **LOOPBACK_ONLY, "RAY_ADDRESS": self.address}

    def __enter__(self) -> LocalCluster:
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cluster.local", *self._arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the block
        )
        try:
            self.address = self._wait_for("address")[0]
            self._wait_for("ready")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def add_node(self, size: str) -> LocalNode:
        """One more, when it is ready."""
        NodeSize.parse(size)
        self._send(f"add {size}")
        return self.nodes[self._wait_for("node")[0]]

    def kill_node(self, name: str) -> None:
        """SIGKILL to everything that runs on the node, at once. LocalClusterError if there is none of it."""
        if name not in self.nodes:
            raise LocalClusterError(f"no node {name!r}: there are {', '.join(self.nodes) or 'none'}")
        self._send(f"kill {name}")
        self._wait_for("killed")

    def stop(self) -> None:
        """End all of it. Nothing is left afterwards."""
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
        with suppress(BrokenPipeError):  # _wait_for says why
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()

    def _wait_for(self, word: str) -> list[str]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said, *rest = line.split()
            if said == "node":
                self.nodes[rest[0]] = LocalNode(rest[0], rest[1], int(rest[2]))
            elif said == "killed":
                del self.nodes[rest[0]]
            if said == word:
                return rest
            if said == "error":
                raise LocalClusterError(" ".join(rest))
        self._process.wait()
        self._errors.seek(0)
        raise LocalClusterError(f"the cluster ended: {self._errors.read()[-2_000:].decode(errors='replace')}")


class _Nodes:
    """The nodes of this process."""

    def __init__(self, dashboard: bool, growth: Growth | None = None) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(shutdown_at_exit=False)
        self._numbered: dict[str, Any] = {}
        self._started = 0
        head = {"dashboard_port": _free_port(), "dashboard_agent_listen_port": 0} | (
            growth.head() if growth else {}
        )
        self._add(NodeSize(cpus=0), include_dashboard=dashboard, ray_client_server_port=None, **head)
        self.address = self._cluster.address
        print(f"address {self.address}", flush=True)
        if dashboard:
            print(f"dashboard http://{self._cluster.webui_url}", flush=True)

    def add(self, size: NodeSize) -> None:
        node = self._add(size)
        self._started += 1
        name = str(self._started)
        self._numbered[name] = node
        print(f"node {name} {node.node_id} {_raylet(node)} {size}", flush=True)

    def _add(self, size: NodeSize, **more: Any) -> Any:
        node = self._cluster.add_node(
            wait=False,
            node_ip_address=_LOOPBACK,
            num_cpus=size.cpus,
            num_gpus=size.gpus,
            memory=size.memory,
            object_store_memory=size.store,
            **more,
        )
        self._cluster._wait_for_node(node, timeout=_PATIENCE_S)  # add_node's own wait ends after 30 s
        return node

    def kill(self, name: str) -> None:
        if name not in self._numbered:
            raise LocalClusterError(f"no node {name!r}: there are {', '.join(self._numbered) or 'none'}")
        node = self._numbered.pop(name)
        raylet = psutil.Process(_raylet(node))
        raylet.suspend()  # it must not see its workers go, nor start others
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


@contextmanager
def _nothing_left() -> Iterator[None]:
    """A folder for Ray in the block; afterwards neither it nor any process started in it."""
    # Orphans become our children: none gets lost when its raylet is killed.
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update(LOOPBACK_ONLY)
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder  # with it, `ray.init()` elsewhere does not find this cluster
        try:
            yield
        finally:
            while found := psutil.Process().children(recursive=True):
                _kill(found)


def serve(
    sizes: Sequence[NodeSize], commands: Iterator[str], dashboard: bool, growth: Growth | None = None
) -> None:
    """Start a cluster, say what it is, do what is commanded, and stop it when no more commands come."""
    with _nothing_left():
        nodes = _Nodes(dashboard, growth)
        for size in sizes:
            nodes.add(size)
        joining = " ".join(f"{name}={value}" for name, value in LOOPBACK_ONLY.items())
        print(f"ready export RAY_ADDRESS={nodes.address} {joining}", flush=True)
        print(f"stop with Ctrl-C; {COMMANDS}", flush=True)
        for line in commands:
            verb, _, rest = line.strip().partition(" ")
            try:
                if verb == "add":
                    nodes.add(NodeSize.parse(rest))
                elif verb == "kill":
                    nodes.kill(rest)
                elif verb:
                    raise LocalClusterError(f"{verb!r}? {COMMANDS}")
            except LocalClusterError as error:
                print(f"error {error}", flush=True)


def _stdin() -> Iterator[str]:
    """The lines of standard input; without one (nohup, a service), none until a signal comes."""
    if (
        sys.stdin is not None
        and not sys.stdin.closed
        and os.fstat(0).st_rdev != Path(os.devnull).stat().st_rdev
    ):
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
    parser.add_argument("--dashboard", action="store_true", help="start Ray's dashboard too")
    parser.add_argument("--grow", metavar="cpus=2,gpus=1", help="size of nodes that the autoscaler may start")
    parser.add_argument("--most", type=int, help="of those at once (1)")
    arguments = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        growth = Growth.parse(arguments.grow, arguments.most)
        serve([NodeSize.parse(one) for one in arguments.nodes], _stdin(), arguments.dashboard, growth)
    except KeyboardInterrupt:
        return 130
    except LocalClusterError as error:
        print(f"python -m cluster.local: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
