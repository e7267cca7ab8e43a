"""The listening sockets of a running cluster, and whether each asks for Ray's token."""

from __future__ import annotations

import http.client
import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

# A method of each gRPC service of Ray's processes. Without data, none of them changes anything.
_METHODS = (
    "/ray.rpc.NodeInfoGcsService/CheckAlive",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/ReportOCMetrics",
)
_TIMEOUT_S = 20.0  # on a busy machine
_ROW = re.compile(r"^\| `([^`]+)`.*\| ([^|]+) \| (gRPC|HTTP) \| (yes|no)\b[^|]*\|$", re.MULTILINE)


@dataclass(frozen=True, order=True)
class Listener:
    """A socket that a process of the cluster listens at."""

    process: str
    protocol: str
    token: str
    """yes: it asks for the token; no."""


def documented(page: Path) -> set[Listener]:
    """The rows of the page's table: process, purpose, protocol, token."""
    rows = _ROW.findall(page.read_text(encoding="utf-8"))
    return {Listener(process, protocol, token) for process, _, protocol, token in rows}


def listeners(pid: int) -> Iterator[tuple[Listener, str]]:
    """Every TCP socket that the process and its descendants listen at, with its address."""
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                ip = connection.laddr.ip.removeprefix("::ffff:")
                protocol, token = _ask(ip, connection.laddr.port)
                yield Listener(_name(process), protocol, token), ip


def is_loopback(ip: str) -> bool:
    return ipaddress.ip_address(ip).is_loopback


def _name(process: psutil.Process) -> str:
    """As the table names it: Ray sets the title of its workers, and runs scripts for the rest."""
    name = process.name()
    if name.startswith("ray::"):
        agent = name.removeprefix("ray::")
        return agent if agent.endswith("Agent") else "worker"
    scripts = [Path(part).stem for part in process.cmdline() if part.endswith(".py")]
    return scripts[0] if name.startswith("python") and scripts else name


def _ask(ip: str, port: int) -> tuple[str, str]:
    """The protocol, and whether a request without a token is refused for that."""
    connection = http.client.HTTPConnection(ip, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/api/jobs/")
        return "HTTP", "yes" if connection.getresponse().status == 401 else "no"
    except (http.client.HTTPException, OSError):
        pass  # not HTTP/1
    finally:
        connection.close()
    with grpc.insecure_channel(f"{ip}:{port}") as channel:
        codes = {_call(channel, method) for method in _METHODS} - {grpc.StatusCode.UNIMPLEMENTED}
    assert codes, f"{ip}:{port}: neither HTTP nor a known service of Ray"
    return "gRPC", "yes" if codes == {grpc.StatusCode.UNAUTHENTICATED} else "no"


def _call(channel: grpc.Channel, method: str) -> grpc.StatusCode:
    try:
        channel.unary_unary(method)(b"", timeout=_TIMEOUT_S)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK
