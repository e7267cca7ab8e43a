"""A local Ray: where it listens, who can join it, and that it ends with a process that is killed."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

OWNER = """
import sys, ray
from tools_service.runtime.connection import connect
with connect("local", "", 1):
    ray.get(ray.remote(lambda: 1).remote())
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""
GUEST = """
import sys, ray
from tools_service.runtime.connection import connect
with connect(sys.argv[1], "--address", 1):
    print(len(ray.nodes()))
"""


def listeners(owner: int) -> dict[str, set[str]]:
    """The addresses that each process of a local Ray listens at, by its name."""
    found: dict[str, set[str]] = {}
    for process in (psutil.Process(owner), *psutil.Process(owner).children(recursive=True)):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                found.setdefault(process.name(), set()).add(connection.laddr.ip)
    return found


def test_a_local_ray_is_on_loopback_only_and_ends_with_its_owner() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    processes: list[psutil.Process] = []
    try:
        assert owner.stdout is not None
        address = next(line for line in owner.stdout if line.startswith("127.0.0.1:")).strip()
        found = listeners(owner.pid)
        assert {"gcs_server", "raylet"} <= found.keys()
        for name, addresses in found.items():
            assert all(ipaddress.ip_address(ip.removeprefix("::ffff:")).is_loopback for ip in addresses), name

        joined = subprocess.run(
            [sys.executable, "-c", GUEST, address],
            capture_output=True,
            text=True,
            check=True,
            env=_with_token(),
        )
        assert joined.stdout.split()[-1] == "1"
        processes = psutil.Process(owner.pid).children(recursive=True)
    finally:
        owner.kill()
        owner.communicate()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (processes := [p for p in processes if _runs(p)]):
        time.sleep(0.2)
    for process in processes:
        process.kill()
    assert not processes


def _with_token() -> dict[str, str]:

    return os.environ | {"RAY_AUTH_MODE": "token"}


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
