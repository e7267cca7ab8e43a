"""The Ray clusters whose head runs on this machine: their addresses and folders.

Out: each cluster's address, its session's folder, and the files there that Ray's dashboard writes for
Prometheus and Grafana. Found by the processes of the control service (GCS); nothing is connected to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.local import DISCOVERY

TARGETS_TIMEOUT_S = 15.0  # a cluster that has just started writes its file of targets after some seconds


class NoClusterError(Exception):
    """There is no such cluster, or nothing of it can be watched."""


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """A Ray cluster whose head is on this machine."""

    address: str
    session: Path
    process: psutil.Process  # its control service (GCS)

    @property
    def targets(self) -> Path:
        """The file that lists the metrics endpoints of its nodes."""
        return self.session / DISCOVERY

    @property
    def dashboards(self) -> Path:
        """Ray's own dashboards for Grafana."""
        return self.session / "metrics" / "grafana" / "dashboards"


def running_clusters() -> list[RunningCluster]:
    """The clusters with their head on this machine, the newest first."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, KeyError, OSError):
            if process.name() != "gcs_server":
                continue
            options = dict(part.lstrip("-").partition("=")[::2] for part in process.cmdline()[1:])
            session = Path(options["session-dir"])
            port = (session / f"gcs_server_port_{options['node-id']}").read_text().strip()
            address = f"{options['node-ip-address']}:{port}"
            found.append((process.create_time(), RunningCluster(address, session, process)))
    return [cluster for _, cluster in sorted(found, key=lambda pair: pair[0], reverse=True)]


def chosen_cluster(address: str | None, clusters: Sequence[RunningCluster]) -> RunningCluster:
    """The cluster at `address`, or the newest. NoClusterError if there is none, or it has no dashboard."""
    source = "--address" if address else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address in (None, "auto", "local"):
        if not clusters:
            raise NoClusterError(
                "no Ray cluster runs on this machine: start a run or `make local-cluster` first, or run this "
                "on the machine of the cluster's head"
            )
        cluster = clusters[0]
    else:
        at_address = [cluster for cluster in clusters if cluster.address == address]
        if not at_address:
            here = ", ".join(cluster.address for cluster in clusters) or "none"
            raise NoClusterError(
                f"{source} {address}: no cluster there has its head on this machine (running here: {here}): "
                "run this on the head's machine, or name the file with its endpoints with --targets"
            )
        [cluster] = at_address
    deadline = time.monotonic() + TARGETS_TIMEOUT_S
    while not cluster.targets.is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    if not cluster.targets.is_file():
        raise NoClusterError(
            f"the cluster at {cluster.address} runs without Ray's dashboard, which lists the metrics "
            "endpoints: start it with its dashboard"
        )
    return cluster
