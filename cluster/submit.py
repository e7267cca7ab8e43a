"""Run a command on an existing Ray cluster.

    python -m cluster.submit --address URL [OPTIONS] -- COMMAND…

In: the address of the cluster's dashboard, and a command that runs in this repository's folder. The
folder is uploaded as it is, without the files that `.gitignore` and EXCLUDED name; packages are the
cluster's own. Out: the job's submission id on standard output, before anything else, then its log.
Exit code 0 if the job succeeded, 1 if it failed, 2 if the cluster could not be reached. An
interrupt leaves the job running. For a cluster that requires a token, Ray reads RAY_AUTH_MODE=token
and RAY_AUTH_TOKEN or ~/.ray/auth_token.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools_service.runtime.address import RayAddressError, require_dashboard

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ROOT = Path(__file__).parents[1]
EXCLUDED = (
    *(".git", ".venv", "/runs", "/tests", "/bench", "/docs", "/reference"),
    *(".*_cache", ".hypothesis", "__pycache__"),
)
# Passed to the job if set here. Everyone who may open the dashboard can read a job's variables.
SECRETS = ("HF_TOKEN",)

# The dashboard of a new cluster may answer this for a while; submission is retried that long.
NO_AGENT = "No available agent"
AGENT_TIMEOUT_S = 120.0


class SubmitError(Exception):
    """The cluster could not be reached or refused the job; the message says why."""


def runtime_env(variables: Sequence[str]) -> dict[str, Any]:
    """This folder, and `variables` (NAME=VALUE, or NAME with its value here) for the job."""
    env_vars = {name: os.environ[name] for name in SECRETS if name in os.environ}
    for variable in variables:
        name, equals, value = variable.partition("=")
        if not name or not (equals or name in os.environ):
            raise SubmitError(
                f"--env {variable}: not NAME=VALUE, nor the name of a variable that is set here"
            )
        env_vars[name] = value if equals else os.environ[name]
    return {"working_dir": str(ROOT), "excludes": list(EXCLUDED), "env_vars": env_vars}


def metadata(command: Sequence[str]) -> dict[str, str]:
    """What the dashboard shows about the job: its command and commit (``-dirty`` with changes)."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return {"command": shlex.join(command), "commit": commit.stdout.strip() or "unknown"}


def start(arguments: argparse.Namespace) -> tuple[JobSubmissionClient, str]:
    """Start the job: a client, and the submission id. SubmitError if the cluster refuses, and
    RayAddressError within seconds if there is none."""
    environment = runtime_env(arguments.env)
    require_dashboard(arguments.address, "--address")
    # Ray would use these instead of --address.
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    os.environ["RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES"] = ""  # EXCLUDED contains them; Ray would warn
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)
    try:
        client = JobSubmissionClient(arguments.address)
        return client, _submission_id(client, arguments, environment)
    except (ConnectionError, RuntimeError, RayError) as error:
        raise SubmitError(f"--address {arguments.address}: {error}") from error


def _submission_id(
    client: JobSubmissionClient, arguments: argparse.Namespace, environment: dict[str, Any]
) -> str:
    deadline = time.monotonic() + AGENT_TIMEOUT_S
    while True:
        try:
            return client.submit_job(
                entrypoint=shlex.join(arguments.command),
                submission_id=arguments.submission_id,
                runtime_env=environment,
                metadata=metadata(arguments.command),
                entrypoint_num_cpus=arguments.cpus,
                entrypoint_num_gpus=arguments.gpus,
            )
        except RuntimeError as error:
            if NO_AGENT not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(2.0)


async def tail_logs(client: JobSubmissionClient, submission_id: str) -> bool:
    """Print the job's log until it ends. Returns whether it succeeded."""
    from ray.job_submission import JobStatus

    async for text in client.tail_job_logs(submission_id):
        print(text, end="", flush=True)
    info = client.get_job_info(submission_id)
    print(f"{submission_id}: {info.status.value}: {info.message}", file=sys.stderr)
    return bool(info.status == JobStatus.SUCCEEDED)


def submit(arguments: argparse.Namespace) -> int:
    """The exit code."""
    if arguments.command[:3] == ["python", "-m", "pipeline"] and "--output" not in arguments.command:
        print(
            "no --output: files written below runs/ stay on a node and are deleted with the job",
            file=sys.stderr,
        )
    client, submission_id = start(arguments)
    print(submission_id, flush=True)
    if arguments.no_wait:
        return 0
    try:
        return 0 if asyncio.run(tail_logs(client, submission_id)) else 1
    except KeyboardInterrupt:
        stop = f"ray job stop --address {arguments.address} {submission_id}"
        print(f"\n{submission_id} keeps running; to stop it: {stop}", file=sys.stderr)
        return 130


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments. An invalid command line exits with code 2 and a message."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.submit", description="Run a command on an existing Ray cluster."
    )
    parser.add_argument("--address", required=True, help="the dashboard's, such as http://127.0.0.1:8265")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a variable for the job; NAME alone: with its value here",
    )
    parser.add_argument("--cpus", type=float, default=1.0, help="CPUs reserved for the command itself (1)")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs reserved for the command itself (0)")
    parser.add_argument("--submission-id", help="a unique name for the job; Ray generates one by default")
    parser.add_argument("--no-wait", action="store_true", help="do not follow the log")
    parser.add_argument("command", nargs="+", help="what to run, after --")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """The exit code."""
    arguments = parse(argv)
    try:
        return submit(arguments)
    except (SubmitError, RayAddressError) as error:
        print(f"python -m cluster.submit: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
