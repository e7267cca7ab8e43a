"""Run a command on a Ray cluster that is there: python -m cluster.submit --address URL [OPTIONS] -- COMMAND…

In: the address of the cluster's dashboard, and a command that starts in this repository's folder. The folder
travels as it is, without what `.gitignore` and EXCLUDED name; packages are the cluster's own. Out: the job's
submission id on standard output, before anything else, then its log; exit code 0 if it succeeded, 1 if it
failed, 2 if the cluster could not be asked. An interrupt leaves the job running. The token of a cluster that
wants one is read by Ray: RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token.
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

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ROOT = Path(__file__).parents[1]
EXCLUDED = (".git", ".venv", "/runs", "/tests", "/bench", "/docs", ".*_cache", ".hypothesis", "__pycache__")
# Passed on where the caller has it. Ray shows a job's variables to whoever may open the dashboard.
SECRETS = ("HF_TOKEN",)

# What the dashboard of a cluster says that has only just started, and how long that is waited for.
NOT_YET = "No available agent"
PATIENCE_S = 120.0


class SubmitError(Exception):
    """The cluster could not be asked; the message says why."""


def runtime_env(variables: Sequence[str]) -> dict[str, Any]:
    """What the job runs in: this folder, and NAME=VALUE or NAME (its value here) as its variables."""
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
    """What the dashboard shows of the job: its command, and its commit (``-dirty``: with changes)."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return {"command": shlex.join(command), "commit": commit.stdout.strip() or "unknown"}


def start(arguments: argparse.Namespace) -> tuple[JobSubmissionClient, str]:
    """Starts the job: a client of its cluster, and its submission id. SubmitError if the cluster refuses."""
    if not arguments.address.startswith(("http://", "https://")):
        raise SubmitError(f"--address {arguments.address}: the dashboard's, such as http://127.0.0.1:8265")
    environment = runtime_env(arguments.env)
    # Ray prefers these to what it is told.
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    os.environ["RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES"] = ""  # EXCLUDED has them; Ray would warn
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
    deadline = time.monotonic() + PATIENCE_S
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
            if NOT_YET not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(2.0)


async def follow(client: JobSubmissionClient, submission_id: str) -> bool:
    """Prints the job's log until it ends; whether it succeeded."""
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
            "no --output: what is written below runs/ stays on a node and goes with the job", file=sys.stderr
        )
    client, submission_id = start(arguments)
    print(submission_id, flush=True)
    if arguments.no_wait:
        return 0
    try:
        return 0 if asyncio.run(follow(client, submission_id)) else 1
    except KeyboardInterrupt:
        print(
            f"\n{submission_id} goes on; ray job stop --address {arguments.address} {submission_id} ends it",
            file=sys.stderr,
        )
        return 130


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; a wrong command line exits with code 2 and a message."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.submit", description="Run a command on a Ray cluster that is there."
    )
    parser.add_argument("--address", required=True, help="the dashboard's, such as http://127.0.0.1:8265")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]", help="a variable for the job"
    )
    parser.add_argument("--cpus", type=float, default=1.0, help="CPUs kept for the command itself (1)")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs kept for the command itself (0)")
    parser.add_argument(
        "--submission-id", help="a name for the job, used once; Ray makes one if there is none"
    )
    parser.add_argument("--no-wait", action="store_true", help="do not follow the log")
    parser.add_argument("command", nargs="+", help="what to run, after --")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """The exit code."""
    arguments = parse(argv)
    try:
        return submit(arguments)
    except SubmitError as error:
        print(f"python -m cluster.submit: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
