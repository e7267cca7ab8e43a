"""The clusters of this machine, found by their processes; small programs stand in for Ray's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import cluster.running_clusters
from cluster.local import DISCOVERY
from cluster.running_clusters import (
    NoClusterError,
    RunningCluster,
    chosen_cluster,
    running_clusters,
)

pytestmark = pytest.mark.unit


@contextmanager
def gcs_server(folder: Path, port: int) -> Iterator[None]:
    """A process that looks like Ray's, whose session is `folder`."""
    folder.mkdir()
    (folder / "gcs_server_port_ab12").write_text(f"{port}\n")
    program = folder / "gcs_server"
    program.symlink_to(sys.executable)
    options = [f"--session-dir={folder}", "--node-ip-address=127.0.0.1", "--node-id=ab12"]
    wait = "import sys; print(flush=True); sys.stdin.read()"
    command = [program, "-S", "-E", "-c", wait, *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate()


def test_clusters_are_found_the_newest_first(tmp_path: Path) -> None:
    with gcs_server(tmp_path / "a", 1001), gcs_server(tmp_path / "b", 1002):
        found = [one for one in running_clusters() if one.session.parent == tmp_path]
    assert [(one.address, one.session.name) for one in found] == [
        ("127.0.0.1:1002", "b"),
        ("127.0.0.1:1001", "a"),
    ]
    assert all(not one.process.is_running() for one in found)


def test_a_cluster_that_is_only_starting_is_left_out(tmp_path: Path) -> None:
    with gcs_server(tmp_path / "a", 1001):
        (tmp_path / "a" / "gcs_server_port_ab12").unlink()
        assert not [one for one in running_clusters() if one.session.parent == tmp_path]


def cluster_at(address: str, session: Path) -> RunningCluster:
    session.mkdir()
    (session / DISCOVERY).write_text("[]")
    return RunningCluster(address, session, psutil.Process())


def test_the_newest_the_one_of_the_variable_and_the_one_of_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clusters = [cluster_at(f"127.0.0.1:{port}", tmp_path / str(port)) for port in (1, 2, 3)]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert chosen_cluster(None, clusters) == clusters[0]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:2")
    assert chosen_cluster(None, clusters) == clusters[1]
    assert chosen_cluster("127.0.0.1:3", clusters) == clusters[2]
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert chosen_cluster(None, clusters) == clusters[0]


def test_no_cluster_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(NoClusterError, match=r"^no Ray cluster runs on this machine: start a run or"):
        chosen_cluster(None, [])
    clusters = [cluster_at("127.0.0.1:1", tmp_path / "1")]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    with pytest.raises(
        NoClusterError, match=r"^RAY_ADDRESS 10.0.0.7:6379: .*running here: 127.0.0.1:1.*--targets"
    ):
        chosen_cluster(None, clusters)
    with pytest.raises(NoClusterError, match=r"^--address 127.0.0.1:2: "):
        chosen_cluster("127.0.0.1:2", clusters)


def test_a_cluster_without_dashboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.running_clusters, "TARGETS_TIMEOUT_S", 0.0)
    without = cluster_at("127.0.0.1:1", tmp_path / "1")
    without.targets.unlink()
    with pytest.raises(
        NoClusterError, match=r"127.0.0.1:1 runs without Ray's dashboard.*start it with its dashboard"
    ):
        chosen_cluster("127.0.0.1:1", [without])
