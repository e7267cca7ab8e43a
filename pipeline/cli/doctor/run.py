"""Makes all checks on this machine and prints a line for each.

In: options. Out: the lines, or one JSON object with --json. Exit code 2 if there is a problem, else 0; a
warning is no problem. There is no network call but with --network, and to the cluster in RAY_ADDRESS.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import shutil
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from pipeline.cli.doctor import machine, packages
from pipeline.cli.doctor.check import Check

SUMMARY = "Is this machine fit for a run? A line for each check, with what to do."
_DISTRIBUTION = "toolformer-on-ray"
_TIMEOUT_S = 5.0
_SMI = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


def doctor(argv: Sequence[str], program: str = "python -m pipeline") -> int:
    """The command `doctor`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"{program} doctor",
        description=f"{SUMMARY} Exit code: 2 if there is a problem, else 0.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--network", action="store_true", help="ask the Hugging Face hub, too")
    options = parser.parse_args(argv)
    checks = []
    for check in run_checks(network=options.network):
        checks.append(check)
        if not options.json:
            print(check.line(width=16), flush=True)
    states = [check.state for check in checks]
    problems, warnings = states.count("problem"), states.count("warning")
    if options.json:
        found = {"problems": problems, "warnings": warnings, "checks": [asdict(check) for check in checks]}
        print(json.dumps(found, indent=1))
    else:
        print(f"{len(checks)} checks: {problems} problems, {warnings} warnings")
    return 2 if problems else 0


def run_checks(*, network: bool = False) -> Iterator[Check]:
    """Every check, in order; one that fails itself is a warning."""
    environ, here = os.environ, Path.cwd()
    seen = _gpus()
    checks: tuple[tuple[str, Callable[[], Check]], ...] = (
        (
            "Python",
            lambda: packages.python_version(tuple(sys.version_info[:2]), sys.executable, in_venv=_in_venv()),
        ),
        ("packages", lambda: packages.packages(requirements(here), version_of)),
        ("GPU", lambda: packages.gpu(_output(_SMI), *seen)),
        ("compiler", lambda: packages.compiler(shutil.which, environ, gpus=seen[1] or 0)),
        ("memory", lambda: machine.memory(_text("/proc/meminfo"), machine.memory_limit(_cgroup()))),
        ("disk", lambda: machine.disk(here, shutil.disk_usage(here).free)),
        ("shared memory", lambda: machine.shared_memory(Path("/dev/shm"), _free("/dev/shm"))),
        ("temporary files", lambda: machine.temporary_folder(environ, _ray_folder())),
        ("home", lambda: machine.home(environ, _home())),
        ("ports", lambda: machine.ports(machine.port_is_free)),
        ("RAY_ADDRESS", lambda: machine.ray_address(environ, _probe())),
        ("limits", lambda: machine.limits(_limit(resource.RLIMIT_NOFILE), _limit(resource.RLIMIT_NPROC))),
        ("container limits", lambda: machine.cgroup(_cgroup(), os.cpu_count() or 1)),
        ("demo files", lambda: machine.demo_files(Path("demo"))),
        ("staged models", lambda: machine.staged_models(_hub_home() / "toolformer")),
        ("hub", lambda: packages.hub(environ, reach if network else None)),
    )
    for name, check in checks:
        try:
            yield check()
        except Exception as error:  # what is strange here must not hide the other checks
            yield Check(name, "warning", f"could not be checked: {type(error).__name__}: {error}")


def requirements(folder: Path) -> list[str]:
    """The requirements of the installed package, else those of pyproject.toml in `folder` or beside us."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.requires(_DISTRIBUTION) or []
    for file in (folder / "pyproject.toml", Path(__file__).parents[3] / "pyproject.toml"):
        if file.is_file():
            project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
            if project.get("name") == _DISTRIBUTION:
                return list(project.get("dependencies", []))
    return []


def version_of(package: str) -> str | None:
    """The installed version; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def reach(address: str) -> str | None:
    """Why `address` does not answer within 5 s; None if it does, with whatever status."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_TIMEOUT_S):
            return None
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def _in_venv() -> bool:
    return sys.prefix != sys.base_prefix


def _gpus() -> tuple[str | None, int | None]:
    """torch's CUDA version, None for a CPU build; and how many GPUs it can use, None without torch."""
    try:
        import torch

        return torch.version.cuda, torch.cuda.device_count() if torch.cuda.is_available() else 0
    except Exception:  # it may be there and broken
        return None, None


def _output(command: Sequence[str]) -> str | None:
    """What a command prints; None if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * _TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _probe() -> Callable[[str, str], None] | None:
    with suppress(ImportError):
        from tools_service.runtime.address import require_cluster

        return require_cluster
    return None


def _ray_folder() -> Callable[[], Path] | None:
    with suppress(ImportError):
        from tools_service.runtime.surroundings import ray_folder

        return ray_folder
    return None


def _cgroup() -> dict[str, str]:
    """The limits of this process's group (version 2); nothing where there are none."""
    own = next(
        (line[3:].strip() for line in _text("/proc/self/cgroup").splitlines() if line[:3] == "0::"), "/"
    )
    folders = [Path("/sys/fs/cgroup"), Path(f"/sys/fs/cgroup{own}")]
    names = ("memory.max", "cpu.max", "pids.max")
    return {name: text for folder in folders for name in names if (text := _text(folder / name))}


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _free(folder: str) -> int | None:
    try:
        return shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else 0
    except OSError:
        return None


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None


def _hub_home() -> Path:
    """The folder of the hub's client, HF_HOME, as it finds it."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or Path(caches, "huggingface")).expanduser()


def _limit(which: int) -> int:
    soft = resource.getrlimit(which)[0]
    return -1 if soft == resource.RLIM_INFINITY else soft
