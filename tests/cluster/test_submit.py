"""Submitting to a real cluster with a dashboard and a token: what the job gets, sees and leaves."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.submit import ROOT, main

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

# A cluster of its own: the one that other tests share has no dashboard and no token. It ends with its input.
CLUSTER = """
import ray, sys
context = ray.init(address="local", num_cpus=2, include_dashboard=True, dashboard_host="127.0.0.1",
                   dashboard_port=int(sys.argv[1]), object_store_memory=100 * 1024**2, log_to_driver=False)
print("http://" + context.dashboard_url, flush=True)
sys.stdin.read()
ray.shutdown()
"""


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

    def job(self, submission_id: str) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.address}/api/jobs/{submission_id}")
        request.add_header("Authorization", f"Bearer {self.environment['RAY_AUTH_TOKEN']}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            described: dict[str, Any] = json.load(answer)
        return described


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "HF_"))}
    environment = inherited | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path_factory.mktemp("home")),  # no token of whoever runs the tests
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "240",  # a busy machine needs more than Ray's 60
    }
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(port)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        address = process.stdout.readline().strip()
        assert address == f"http://127.0.0.1:{port}", process.stderr.read()
        yield Cluster(address, environment)
        process.stdin.close()
        assert process.wait(60) == 0


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
    job = cluster.job("seen")
    assert job["status"] == "SUCCEEDED"
    assert shlex.split(job["metadata"]["command"]) == ["bash", "-c", command]
    assert job["metadata"]["commit"]


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
