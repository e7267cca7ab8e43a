"""Submission to a real cluster with a dashboard and a token: the job's folder, variables and
output."""

from __future__ import annotations

import http.client
import json
import os
import re
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
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.fixtures import small_run
from cluster.local import LocalCluster
from cluster.submit import ROOT, main, readable_id
from pipeline.storage.manifest import read_manifest
from pipeline.storage.row_files import read_rows

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

PIPELINE = ("python", "-m", "pipeline")


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
            "HOME": folder,  # without the token of the user who runs the tests
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "240",  # Ray's default of 60 is too short on a busy machine
        }
        # The agent starts the jobs; its default port may belong to another cluster.
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
            # Asked to end, `ray start` waits half a minute for its processes.
            for started in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    started.kill()
            process.kill()
            process.wait(60)


JOB = """
import json, os, pathlib
there = sorted(path.name for path in pathlib.Path().iterdir())
print(json.dumps({"there": there, "variables": [os.environ["GIVEN"], os.environ["PASSED_ON"]]}))
"""


def test_a_job_gets_this_folder_and_its_variables_and_describes_itself(cluster: Cluster) -> None:
    command = f"python -c {shlex.quote(JOB)} && python -m pipeline --help"
    done = cluster.submit(
        *("--submission-id", "seen", "--env", "GIVEN=a value", "--env", "PASSED_ON"),
        *("--", "bash", "-c", command),
        PASSED_ON="from here",
        RAY_ADDRESS="192.0.2.1:6379",  # Ray would prefer it to --address
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


def test_a_submitted_annotate_writes_its_rows_to_the_output(cluster: Cluster, tmp_path: Path) -> None:
    """The job's folder is a copy with model, prompts and pages; the output lies outside."""
    output = tmp_path / "annotations"
    done = cluster.submit(
        *("--", "python", "-m", "pipeline", "annotate", "--recipe", "demo", "--output", str(output)),
        *("--method.tools", "Calculator", "Calendar", "--corpus.max-texts", "6", "--ray.actors", "1"),
    )
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(output)
    assert manifest.state == "finished"
    assert manifest.counts is not None
    assert manifest.counts.texts == len(list(read_rows(output, ["text_id"]))) == 6
    assert any(row["calls"] for row in read_rows(output, ["calls"]))


def test_a_failed_job_gives_exit_code_1(cluster: Cluster) -> None:
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


def annotate_command(world: Path) -> tuple[str, ...]:
    """Annotates a small world, which is written, with one actor."""
    small_run.write_world(world, pages=8)
    command = (*PIPELINE, "annotate", "--recipe", "demo", "--corpus", str(world / "pages"))
    return *command, "--model", str(world / "model"), "--method.tools", "Calculator", "--ray.actors", "1"


def test_what_the_command_itself_holds_is_not_there_for_its_actors(cluster: Cluster, tmp_path: Path) -> None:
    annotate = annotate_command(tmp_path)
    done = cluster.submit(
        "--cpus", "7.5", "--", *annotate, "--ray.wait-s", "1", "--output", str(tmp_path / "x")
    )
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "beside the job's own command (7.5 CPUs), has 0.5 CPUs" in said, said
    assert "lower --ray.cpus-per-actor" in said


def test_jobs_run_on_two_nodes_and_on_three(tmp_path: Path) -> None:
    """The shell that starts the cluster has another python first in its PATH, as after `make setup`."""
    annotate = annotate_command(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.defpath)
        with LocalCluster(["cpus=2", "cpus=2"], dashboard=True) as local:
            running = Cluster(local.dashboard, local.environment)
            for name in ("two", "three"):
                output = tmp_path / name
                done = running.submit("--", *annotate, "--output", str(output))
                assert done.returncode == 0, done.stdout + done.stderr
                assert done.stdout.startswith("annotate-demo-")
                assert read_manifest(output).state == "finished"
                assert f"results: {output}" in done.stderr
                if name == "two":
                    local.add_node("cpus=2")
            assert running.submit("--submission-id", "mine", "--no-wait", "--", "true").returncode == 0
            again = running.submit("--submission-id", "mine", "--", "true")
            assert (again.returncode, again.stdout) == (2, "")
            assert "mine already exists" in again.stderr
            assert "Traceback" not in again.stderr
            local.stop()
            gone = running.submit("--", "true")
            assert gone.returncode == 2
            assert "--address http" in gone.stderr


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ((*PIPELINE, "annotate", "--recipe", "demo", "--output", "/s/x"), "annotate-demo"),
        ((*PIPELINE, "annotate", "--recipe=paper", "--recipe=my own"), "annotate-my-own"),
        ((*PIPELINE, "merge", "--output", "/shared/runs/C_star"), "merge-c-star"),
        ((*PIPELINE, "annotate"), "annotate"),
        (("bash", "cluster/paper.sh", "/shared"), "paper"),
        (("true",), "true"),
        (("!", "-x"), "job"),
        ((*PIPELINE, "merge", "--recipe", "r" * 99), f"merge-{'r' * 54}"),
    ],
)
def test_a_submission_id_says_what_runs(command: tuple[str, ...], name: str) -> None:
    made = readable_id(command, datetime(2026, 11, 28, 23, 59))
    assert re.fullmatch(rf"{name}-20261128-2359-[0-9a-f]{{4}}", made)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--address", "localhost:8265"), "http://"),
        (("--address", "http://127.0.0.1:1"), "127.0.0.1:1"),
        (("--address", "http://127.0.0.1:1", "--env", "NOT_SET_HERE"), "NOT_SET_HERE"),
    ],
)
def test_submission_errors_are_reported(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--", "true"]) == 2
    assert message in capsys.readouterr().err
