"""Starts Ray on this machine, or joins a named cluster; each failure is one sentence.

In: a number of CPUs, or an address. Out: a connected process, until ray.shutdown(). A local Ray
listens on loopback only. It starts also where the home or temporary folder, the proxy settings or the
shared memory would keep Ray from it (surroundings.py).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

import ray
from ray._private import ray_constants, services

from tools_service.base.errors import ConfigurationError
from tools_service.runtime.address import (
    AUTO,
    CLIENT,
    LOCAL,
    TOKEN,
    RayAddressError,
    greets,
    is_loopback,
    require_cluster,
    split_address,
)
from tools_service.runtime.reaper import start_reaper
from tools_service.runtime.surroundings import local_ray_options, pass_by_proxies, require_known_auth_mode

# Makes Ray use loopback only, as on systems for which it does not support clusters.
LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"

_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
_MAX_REASON = 300  # characters of a message of Ray's


class RayStartError(ConfigurationError):
    """Ray does not start on this machine, or does not let this process join."""


def connect(address: str, source: str, cpus: int, *, dashboard: bool | None = None) -> Any:
    """Join the cluster at `address`, or start a local one with `cpus` for "local".

    Returns Ray's context, which disconnects at the end of a `with` block. Raises RayAddressError, which
    names `source`, if there is no cluster, and RayStartError if Ray refuses.
    """
    require_known_auth_mode()
    pass_by_proxies()
    return start_ray(cpus, dashboard) if address == LOCAL else join_ray(address, source)


def start_ray(cpus: int, dashboard: bool | None = None) -> Any:
    """Start a Ray of `cpus` logical CPUs on this machine; RayStartError if that fails.

    `dashboard` is Ray's `include_dashboard`: None starts one if it is installed.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else an error per restartable actor
    # Ray Train would start a process that watches for nodes that are about to be taken away.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    _end_at_hangup()
    use_loopback_only()
    options = local_ray_options()
    start_reaper()
    try:
        return ray.init(address=LOCAL, num_cpus=cpus, include_dashboard=dashboard, **_QUIET, **options)
    except Exception as error:  # Ray raises that class itself
        ray.shutdown()
        raise RayStartError(f"Ray does not start on this machine: {_one_line(error)}") from error


def join_ray(address: str, source: str) -> Any:
    """Join the cluster at `address`. RayAddressError or RayStartError, which name `source`."""
    if address == AUTO:
        try:
            address = services.get_ray_address_from_environment(AUTO, None)
        except Exception:  # as above
            raise RayAddressError(
                f"{source} {AUTO}: no Ray cluster runs on this machine; start one, or leave {source} out"
            ) from None
    require_cluster(address, source)
    if not address.startswith(CLIENT):
        host, port = split_address(address, source)
        if is_loopback(host):
            _join_as_it_listens(port)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")  # else a warning per attempt
    try:
        return ray.init(address=address, **_QUIET)
    except Exception as error:  # as above
        ray.shutdown()
        raise RayStartError(
            f"{source} {address}: cannot join the Ray cluster there: {_one_line(error)}; compare the "
            f"versions of Ray, and the token ({TOKEN})"
        ) from error


def _end_at_hangup() -> None:
    """Let a closed terminal end this process as Ctrl-C does, so that it stops its Ray."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup ignores it
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def use_loopback_only() -> None:
    """Keep Ray's processes, this one among them, on loopback."""
    os.environ[LOOPBACK_VARIABLE] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False  # which Ray reads from the variable when it is imported


def _join_as_it_listens(port: int) -> None:
    """Ray takes 127.0.0.1 for the machine's own address; a Ray that is on loopback only is not there."""
    try:
        greets(services.get_node_ip_address(), port)  # type: ignore[no-untyped-call]
    except OSError:
        use_loopback_only()


def _one_line(error: Exception) -> str:
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= _MAX_REASON else f"{line[:_MAX_REASON]} …"
