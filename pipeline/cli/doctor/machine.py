"""Checks of the machine: memory, disk, folders, ports, limits, Ray's address, the demo's files.

In: paths and numbers. Out: a Check each. Folders are tried by a temporary file in them.
"""

from __future__ import annotations

import json
import re
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.cli.doctor.check import Check, size

_GIB, _MIB = 2**30, 2**20
_LEAST_MEMORY, _LITTLE_MEMORY = 2 * _GIB, 4 * _GIB
_LEAST_DISK, _LITTLE_DISK = 1 * _GIB, 10 * _GIB
_LEAST_SHARED_MEMORY = 200 * _MIB  # tools_service/runtime/surroundings.py
_LITTLE_FILES, _LITTLE_PROCESSES = 4_096, 2_048
_LITTLE_PIDS = 1_000
_UNLIMITED_CGROUP = 2**60
PORTS = (("serve", 8_000), ("tools_service serve --http", 8_700))
_LFS_POINTER = b"version https://git-lfs"
_FEWER = "lower ray.actors, or use a smaller model"


def memory(meminfo: str, cgroup_limit: int | None) -> Check:
    """Memory that is free, by /proc/meminfo, within the limit of the container."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    if match is None:
        return Check("memory", "warning", "/proc/meminfo says nothing", "look at the free memory yourself")
    available = int(match[1]) * 1024
    found = f"{size(available)} free"
    if cgroup_limit is not None:
        found += f", the container may use {size(cgroup_limit)}"
        available = min(available, cgroup_limit)
    if available < _LEAST_MEMORY:
        return Check(
            "memory", "problem", found, f"Ray and a model do not fit: end other programs, or {_FEWER}"
        )
    return (
        Check("memory", "warning", found, _FEWER)
        if available < _LITTLE_MEMORY
        else Check("memory", "ok", found)
    )


def disk(folder: Path, free: int) -> Check:
    """Space for outputs."""
    found = f"{size(free)} free in {folder}"
    advice = "make room, or name an --output on another disk"
    if free >= _LITTLE_DISK:
        return Check("disk", "ok", found)
    return Check("disk", "problem" if free < _LEAST_DISK else "warning", found, advice)


def shared_memory(folder: Path, free: int | None) -> Check:
    """Room for Ray's objects; None: no such folder."""
    if free is not None and free >= _LEAST_SHARED_MEMORY:
        return Check("shared memory", "ok", f"{size(free)} free in {folder}")
    found = f"{size(free)} free in {folder}" if free is not None else f"no {folder}"
    advice = "Ray keeps objects on the disk, which is slower; in Docker: --shm-size=2g"
    return Check("shared memory", "warning", found, advice)


def temporary_folder(environ: Mapping[str, str], ray_folder: Callable[[], Path] | None) -> Check:
    """The folder for Ray's sockets: as the environment says, or another that Ray uses instead."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if environ.get(name)), "")
    wanted = Path(environ.get(name) or "/tmp")
    shown = f"{name}={wanted}" if name else str(wanted)
    if (problem := _unwritable(wanted)) is not None:
        advice = "name a writable folder in TMPDIR"
        if wanted == Path("/tmp"):
            return Check("temporary files", "problem", f"{shown}: {problem}", advice)
        return Check("temporary files", "warning", f"{shown}: {problem}", f"{advice}, or unset it")
    if ray_folder is not None:
        try:
            used = ray_folder()
        except Exception as error:  # the class is of a package that may be missing
            return Check("temporary files", "problem", f"{shown}: {error}", "set RAY_TMPDIR to a short path")
        if used != Path(wanted, "ray").absolute():
            advice = "name a folder with a shorter path in RAY_TMPDIR"
            return Check(
                "temporary files", "warning", f"{shown} is no place for sockets, Ray uses {used}", advice
            )
    return Check("temporary files", "ok", shown)


def home(environ: Mapping[str, str], folder: Path | None) -> Check:
    """The home folder, where models of the hub and Ray's token go."""
    if folder is None:
        return Check("home", "warning", "this user has no home folder", "set HOME or HF_HOME to a folder")
    cache = environ.get("HF_HOME")
    problem = _unwritable(Path(cache) if cache else folder)
    if problem is None:
        return Check("home", "ok", f"HF_HOME={cache}" if cache else str(folder))
    advice = "models of the hub cannot be kept: set HF_HOME to a writable folder"
    return Check("home", "warning", f"{cache or folder}: {problem}", advice)


def staged_models(folder: Path) -> Check:
    """The models that `fetch` has staged in `folder`."""
    names = []
    for manifest in sorted(folder.glob("*/manifest.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            names.append(str(json.loads(manifest.read_text(encoding="utf-8"))["source"]))
    if not names:
        return Check("staged models", "ok", f"none in {folder} (`fetch --recipe paper` stages the paper's)")
    return Check("staged models", "ok", f"{', '.join(names)} in {folder}")


def ports(is_free: Callable[[int], bool], wanted: Sequence[tuple[str, int]] = PORTS) -> Check:
    """The ports of the endpoints, and a free one on loopback, which Ray needs."""
    if not is_free(0):
        return Check("ports", "problem", "no port on 127.0.0.1 can be opened", "Ray needs loopback (lo up)")
    taken = [f"{port} ({command})" for command, port in wanted if not is_free(port)]
    if taken:
        advice = "name another with --port there, if you need it"
        return Check("ports", "warning", f"in use: {', '.join(taken)}", advice)
    return Check("ports", "ok", f"free: {', '.join(str(port) for _, port in wanted)}")


def port_is_free(port: int) -> bool:
    """Whether `port` can be listened on at 127.0.0.1; 0 stands for any."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def ray_address(environ: Mapping[str, str], probe: Callable[[str, str], None] | None) -> Check:
    """The cluster in RAY_ADDRESS. `probe` raises an error within 5 s if there is none."""
    address = environ.get("RAY_ADDRESS")
    if not address or address == "local":
        return Check("RAY_ADDRESS", "ok", "not set: runs start Ray on this machine")
    if address == "auto" or probe is None:
        return Check("RAY_ADDRESS", "ok", f"{address}, not asked")
    try:
        probe(address, "RAY_ADDRESS")
    except Exception as error:  # the class is of a package that may be missing
        message = str(error).removeprefix(f"RAY_ADDRESS {address}: ")
        return Check("RAY_ADDRESS", "problem", f"{address}: {message}", "or unset it, to use this machine")
    return Check("RAY_ADDRESS", "ok", f"Ray answers at {address}")


def limits(files: int, processes: int) -> Check:
    """The soft limits of open files and processes; -1: none."""
    found = f"{_count(files)} open files, {_count(processes)} processes"
    advice = []
    if 0 <= files < _LITTLE_FILES:
        advice.append(f"ulimit -n {16 * _LITTLE_FILES}")
    if 0 <= processes < _LITTLE_PROCESSES:
        advice.append(f"ulimit -u {16 * _LITTLE_PROCESSES}")
    if not advice:
        return Check("limits", "ok", found)
    return Check("limits", "warning", found, f"Ray may run out of them: {' and '.join(advice)}")


def cgroup(values: Mapping[str, str], cpus: int) -> Check:
    """The limits of the container, by the files memory.max, cpu.max and pids.max of its group."""
    said = []
    quota, _, period = values.get("cpu.max", "max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        said.append(f"{int(quota) / int(period):g} of {cpus} CPUs")
    if (limit := memory_limit(values)) is not None:
        said.append(f"{size(limit)} of memory")
    pids = values.get("pids.max", "max").strip()
    if pids.isdigit():
        said.append(f"{pids} processes")
    found = ", ".join(said) or "none"
    if pids.isdigit() and int(pids) < _LITTLE_PIDS:
        advice = "Ray starts many threads; in Docker: --pids-limit=-1"
        return Check("container limits", "warning", found, advice)
    return Check("container limits", "ok", found)


def memory_limit(values: Mapping[str, str]) -> int | None:
    """memory.max in bytes; None if there is none."""
    text = values.get("memory.max", "max").strip()
    return int(text) if text.isdigit() and int(text) < _UNLIMITED_CGROUP else None


def demo_files(folder: Path) -> Check:
    """demo/ with its models, in the working folder."""
    weights = sorted((folder / "models").glob("*/model.safetensors"))
    if not weights:
        advice = "run in a checkout of the repository, or use another recipe with your own texts"
        return Check("demo files", "warning", f"{folder} is not here", advice)
    for file in weights:
        with file.open("rb") as opened:
            if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
                return Check("demo files", "problem", f"{file} is a Git LFS pointer", "git lfs pull")
    return Check("demo files", "ok", f"{len(weights)} models in {folder}")


def _unwritable(folder: Path) -> str | None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _count(limit: int) -> str:
    return "unlimited" if limit < 0 else f"{limit:,}"
