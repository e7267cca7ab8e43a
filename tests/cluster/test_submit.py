"""Submitting to a real cluster with a dashboard and a token: what the job gets, sees and leaves."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.submit import ROOT, main
from pipeline.storage.manifest import read_manifest
from pipeline.storage.row_files import read_rows

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Cluster:
    """A running cluster's dashboard, and an environment that has its token."""

    address: str
    environment: dict[str, str]

    def submit(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cluster.submit", "--address", self.address, *arguments],
            cwd=ROOT,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def ready(self, process: subprocess.Popen[bytes]) -> Cluster:
        while process.poll() is None:  # the test's timeout ends this, if nothing else does
            try:
                self.ask("version")
            except (OSError, http.client.HTTPException):
                time.sleep(0.5)
            else:
                return self
        raise AssertionError(f"ray start ended with {process.returncode}")

    def ask(self, path: str) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.address}/api/{path}")
        request.add_header("Authorization", f"Bearer {self.environment['RAY_AUTH_TOKEN']}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            answered: dict[str, Any] = json.load(answer)
        return answered


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of its own: the one that other tests share has no dashboard and no token."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "HF_"))}
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # short, for the sockets in it
        environment = inherited | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": folder,  # no token of whoever runs the tests
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "240",  # a busy machine needs more than Ray's 60
        }
        # The agent's port as well: its usual one may be another cluster's, and jobs are started through it.
        ports = [f"--dashboard-port={port}", f"--dashboard-agent-listen-port={free_port()}", "--port=0"]
        size = ["--num-cpus=8", f"--object-store-memory={100 * 1024**2}"]
        process = subprocess.Popen(
            [
                "ray",
                "start",
                "--head",
                "--block",
                "--disable-usage-stats",
                f"--temp-dir={folder}",
                *ports,
                *size,
            ],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield Cluster(f"http://127.0.0.1:{port}", environment).ready(process)
        finally:
            process.terminate()
            process.wait(60)


SEEN = """
import json, os, pathlib
there = sorted(path.name for path in pathlib.Path().iterdir())
print(json.dumps({"there": there, "variables": [os.environ["GIVEN"], os.environ["PASSED_ON"]]}))
"""


def test_a_job_runs_in_this_folder_with_its_variables_and_says_what_it_is(cluster: Cluster) -> None:
    command = f"python -c {shlex.quote(SEEN)} && python -m pipeline --help"
    done = cluster.submit(
        *("--submission-id", "seen", "--env", "GIVEN=a value", "--env", "PASSED_ON"),
        *("--", "bash", "-c", command),
        PASSED_ON="from here",
        RAY_ADDRESS="192.0.2.1:6379",  # Ray would take it before --address
    )
    assert done.returncode == 0, done.stderr
    submission_id, *log = done.stdout.splitlines()
    assert submission_id == "seen"
    seen = json.loads(next(line for line in log if line.startswith("{")))
    assert seen["variables"] == ["a value", "from here"]
    assert {"pipeline", "tools_service", "cluster", "demo", "requirements.txt"} <= set(seen["there"])
    assert not {".git", ".venv", "runs", "tests", "docs", "bench"} & set(seen["there"])
    assert "python -m pipeline COMMAND" in done.stdout
    job = cluster.ask("jobs/seen")
    assert job["status"] == "SUCCEEDED"
    assert shlex.split(job["metadata"]["command"]) == ["bash", "-c", command]
    assert job["metadata"]["commit"]


def test_a_submitted_annotate_leaves_its_rows_where_it_was_told_to(cluster: Cluster, tmp_path: Path) -> None:
    """The job's folder is a copy: model, prompts and pages come with it, the output is a path outside."""
    output = tmp_path / "annotations"
    done = cluster.submit(
        *("--", "python", "-m", "pipeline", "annotate", "--recipe", "demo", "--output", str(output)),
        *("--method.tools", "Calculator", "Calendar", "--corpus.max-texts", "12", "--ray.actors", "1"),
    )
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(output)
    assert manifest.state == "finished"
    assert manifest.counts is not None
    assert manifest.counts.texts == len(list(read_rows(output, ["text_id"]))) == 12
    assert any(row["calls"] for row in read_rows(output, ["calls"]))


def test_a_job_that_fails_is_a_failure_here(cluster: Cluster) -> None:
    done = cluster.submit("--", "bash", "-c", "echo it went wrong; exit 3")
    assert done.returncode == 1
    assert "it went wrong" in done.stdout
    assert "exit code 3" in done.stderr


def test_nothing_runs_without_the_token(cluster: Cluster) -> None:
    done = cluster.submit("--", "true", RAY_AUTH_TOKEN="0" * 64)
    assert (done.returncode, done.stdout) == (2, "")
    assert "token" in done.stderr
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{cluster.address}/api/jobs/", timeout=60)
    assert refused.value.code in (401, 403)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--address", "localhost:8265"), "http://"),
        (("--address", "http://127.0.0.1:1"), "127.0.0.1:1"),
        (("--address", "http://127.0.0.1:1", "--env", "NOT_SET_HERE"), "NOT_SET_HERE"),
    ],
)
def test_what_cannot_be_submitted_is_said(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--", "true"]) == 2
    assert said in capsys.readouterr().err
