"""Checks of the software: Python, the packages, the GPU that torch sees, the compiler, the hub.

In: versions, and what commands print. Out: a Check each. Nothing here imports a package unless it is torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from pipeline.cli.doctor.check import Check

_INSTALL = "pip install -r requirements.txt -c constraints.txt"
_REQUIREMENT = re.compile(r"^([\w.-]+)(?:\[[\w,]+\])?\s*([^;]*)(;.*)?$")
_SHOWN = 4
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def python_version(version: Sequence[int], executable: str, *, in_venv: bool) -> Check:
    """Python 3.11, in a virtual environment."""
    found = f"{version[0]}.{version[1]} at {executable}"
    if tuple(version[:2]) != (3, 11):
        return Check("Python", "problem", found, "Python 3.11 is needed: python3.11 -m venv .venv")
    if not in_venv:
        return Check("Python", "ok", f"{found}, in no virtual environment")
    return Check("Python", "ok", found)


def packages(requirements: Sequence[str], version_of: Callable[[str], str | None]) -> Check:
    """Each requirement, such as ``numpy>=2.0,<3``, is installed in a version that fits."""
    missing, wrong = [], []
    for requirement in requirements:
        match = _REQUIREMENT.match(requirement)
        if match is None or "extra" in (match[3] or ""):
            continue
        name, ranges = match[1], match[2]
        version = version_of(name)
        if version is None:
            missing.append(name)
        elif not fits(version, ranges):
            wrong.append(f"{name} {version} ({ranges.strip()})")
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        found = f"missing: {', '.join(missing[:_SHOWN])}{more}"
        return Check("packages", "problem", found, f"activate the environment that has them, or {_INSTALL}")
    if wrong:
        return Check("packages", "problem", f"wrong version: {', '.join(wrong[:_SHOWN])}", _INSTALL)
    if not requirements:
        return Check(
            "packages", "warning", "no list of requirements", "run doctor in the repository's folder"
        )
    return Check("packages", "ok", f"{len(requirements)} requirements")


def fits(version: str, ranges: str) -> bool:
    """Whether a version lies within ``>=A,<B``; other signs are not compared."""
    for part in filter(None, map(str.strip, ranges.split(","))):
        sign, bound = part.rstrip("0123456789.").strip(), _release(part.lstrip("<>=!~ "))
        if (sign == ">=" and _release(version) < bound) or (sign == "<" and _release(version) >= bound):
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    numbers = [int(number) for number in re.findall(r"\d+", version.split("+", maxsplit=1)[0])[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))


def gpu(smi: str | None, build: str | None, seen: int | None) -> Check:
    """The GPUs that the driver shows (`smi`, a line each) and that torch can use (`seen`; None: no torch).

    `build` is the CUDA version of torch, None for a build without.
    """
    shown = [line.strip() for line in (smi or "").splitlines() if line.strip()]
    if seen is None:
        found = f"{'; '.join(shown) or 'none'}, and torch cannot be imported"
        return Check("GPU", "problem", found, f"see packages, or {_INSTALL}")
    if shown and not seen:
        advice = "install the build for CUDA (README, Installation)" if build is None else "update the driver"
        return Check(
            "GPU", "problem", f"{shown[0]}, but torch ({build or 'CPU build'}) cannot use it", advice
        )
    if seen:
        return Check("GPU", "ok", f"{seen} that torch (CUDA {build}) can use; {'; '.join(shown)}")
    return Check("GPU", "ok", "none: models run on the CPU; the recipe single_gpu and paper need one")


def compiler(which: Callable[[str], str | None], environ: Mapping[str, str], *, gpus: int) -> Check:
    """A C++ compiler and ninja, with which DeepSpeed makes its operators for GPUs."""
    found = next(
        (name for name in (environ.get("CXX"), "c++", "g++", "clang++") if name and which(name)), None
    )
    missing = [name for name, there in (("C++ compiler", found), ("ninja", which("ninja"))) if not there]
    if not missing:
        return Check("compiler", "ok", f"{found}, ninja")
    if not gpus:
        return Check("compiler", "ok", f"no {' and no '.join(missing)}; fine-tuning on a CPU needs none")
    advice = (
        "finetune with GPUs needs them for DeepSpeed: install g++ and ninja (apt install g++ ninja-build)"
    )
    return Check("compiler", "warning", f"no {' and no '.join(missing)}", advice)


def hub(environ: Mapping[str, str], reach: Callable[[str], str | None] | None) -> Check:
    """The Hugging Face hub: offline settings, and with `reach` a request (None: it answered)."""
    address = environ.get("HF_ENDPOINT", "https://huggingface.co")
    offline = [name for name in _OFFLINE if environ.get(name, "").lower() in ("1", "true", "yes", "on")]
    if offline:
        return Check("hub", "ok", f"{' and '.join(offline)} set: only models that are on this machine")
    if reach is None:
        return Check("hub", "ok", f"{address}, not asked (--network asks)")
    problem = reach(address)
    if problem is None:
        return Check("hub", "ok", f"{address} answers")
    advice = "models must be in local folders; set HF_HUB_OFFLINE=1, so that nothing waits for it"
    return Check("hub", "warning", f"{address}: {problem}", advice)
