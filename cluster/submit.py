"""Run a command on an existing Ray cluster.

    python -m cluster.submit --address URL [OPTIONS] -- COMMAND…

In: the address of the cluster's dashboard, and a command that runs in this repository's folder. The
folder is uploaded as it is, without the files that `.gitignore` and EXCLUDED name; packages are the
cluster's own. Out: the job's submission id on standard output, before anything else, then its log;
on standard error, how to follow and to stop the job, and where its results are. Exit code 0 if the
job succeeded, 1 if it failed or its end is not known, 2 if it was not submitted. An interrupt
leaves the job running (130). For a cluster that requires a token, Ray reads RAY_AUTH_MODE=token
and RAY_AUTH_TOKEN or ~/.ray/auth_token.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
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

_NAME_CHARACTERS = 60  # of a submission id, before the time


class SubmitError(Exception):
    """The cluster could not be reached or refused the job; the message says why."""


class LostJobError(Exception):
    """The job was submitted, and how it ended is not known."""


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


def readable_id(command: Sequence[str], at: datetime) -> str:
    """A submission id that says what runs: annotate-demo-20261128-2359-ab12.

    The step and its recipe, or else the name of its output; of another command its first file.
    """
    words = [word for word in command if not word.startswith("-")]
    if list(command[:3]) == ["python", "-m", "pipeline"]:
        subject = _option(command, "--recipe") or Path(_option(command, "--output") or "").name
        words = [*command[3:4], subject]
    else:
        words = [next((Path(word).stem for word in words if Path(word).suffix), "".join(words[:1]))]
    name = "-".join(filter(None, (re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)))
    return f"{name[:_NAME_CHARACTERS].strip('-') or 'job'}-{at:%Y%m%d-%H%M}-{secrets.token_hex(2)}"


def _option(command: Sequence[str], name: str) -> str | None:
    """The value of `--name VALUE` or `--name=VALUE`; the last one counts."""
    value = None
    for word, after in zip(command, [*command[1:], ""], strict=True):
        if word == name:
            value = after
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return value or None


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
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise SubmitError(f"--address {arguments.address}: not submitted: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The message of an error; of a traceback that the cluster sent, its last line."""
    lines = [line.strip() for line in str(error).splitlines() if re.search(r"\w", line)]
    line = lines[-1] if any("Traceback" in line for line in lines) else str(error)
    line = re.sub(r"^(?:\w+\.)*\w*Error: ", "", " ".join(line.split())).rstrip(". ")
    return line or type(error).__name__


def _submission_id(
    client: JobSubmissionClient, arguments: argparse.Namespace, environment: dict[str, Any]
) -> str:
    deadline = time.monotonic() + AGENT_TIMEOUT_S
    submission_id = arguments.submission_id or readable_id(arguments.command, datetime.now())
    while True:
        try:
            return client.submit_job(
                entrypoint=shlex.join(arguments.command),
                submission_id=submission_id,
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
    message = str(info.message or "").partition("\n")[0].partition(", last available logs")[0]
    print(f"{submission_id}: {info.status.value}: {message}", file=sys.stderr)
    return bool(info.status == JobStatus.SUCCEEDED)


def submit(arguments: argparse.Namespace) -> int:
    """The exit code."""
    if arguments.command[:3] == ["python", "-m", "pipeline"] and not _option(arguments.command, "--output"):
        print(
            "no --output: files written below runs/ stay on a node and are deleted with the job",
            file=sys.stderr,
        )
    client, submission_id = start(arguments)
    print(submission_id, flush=True)
    job = f"--address {arguments.address} {submission_id}"
    print(f"follow: ray job logs --follow {job}\nstop: ray job stop {job}", file=sys.stderr)
    if (output := _option(arguments.command, "--output")) is not None:
        print(f"results: {output}, a path of the cluster", file=sys.stderr)
    if arguments.no_wait:
        return 0
    try:
        return 0 if asyncio.run(tail_logs(client, submission_id)) else 1
    except KeyboardInterrupt:
        print(f"\n{submission_id} keeps running; to stop it: ray job stop {job}", file=sys.stderr)
        return 130
    except (OSError, RuntimeError) as error:
        raise LostJobError(
            f"the connection to {arguments.address} is lost ({_reason(error)}); {submission_id} may be "
            f"running: ray job status {job}"
        ) from error


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
    parser.add_argument(
        "--submission-id",
        help="a unique name for the job; by default made of step, recipe or output, and time",
    )
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
    except LostJobError as error:
        print(f"python -m cluster.submit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted before the job was submitted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
