"""Optimizer states and weights in CPU memory or on NVMe (DeepSpeed's ZeRO-Offload and ZeRO-Infinity).

In: DeepSpeed's settings. Out: which optimizer they ask for; what contradicts them in the file; what this
machine lacks for them. The sections are DeepSpeed's own (`offload_optimizer`, `offload_param`), and so is
all moving of data.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tools_service.base.printable import printable

_OPTIMIZER = "offload_optimizer"
_WEIGHTS = "offload_param"
_AIO_PACKAGES = "libaio-dev (Debian, Ubuntu), libaio-devel (Fedora, RHEL) or libaio (Arch)"


def offload_device(settings: Mapping[str, Any], section: str = _OPTIMIZER) -> str:
    """Where the optimizer states (or what `section` moves) are: none, cpu or nvme."""
    return str(_section(settings, section).get("device") or "none")


def uses_cpu_adam(settings: Mapping[str, Any]) -> bool:
    """Whether the settings ask for DeepSpeed's own optimizer, which is compiled at its first use.

    DeepSpeed asks for it by default; here a file has to.
    """
    return offload_device(settings) != "none" and settings.get("zero_force_ds_cpu_optimizer") is True


def contradiction(settings: Mapping[str, Any], zero_stage: int) -> str:
    """A sentence about the first key that cannot be honoured; "" if there is none."""
    for section, device in _offloaded(settings):
        values, key = _section(settings, section), f"zero_optimization.{section}"
        if device not in ("cpu", "nvme"):
            return f"{key}.device = {printable(repr(device), 100)}: write none, cpu or nvme"
        least = 3 if section == _WEIGHTS or device == "nvme" else 1
        if zero_stage < least:
            return f"{key} on {device} needs zero_stage = {least}{'' if least == 3 else ' or more'}"
        path = values.get("nvme_path")
        if device == "nvme" and not (isinstance(path, str) and path.strip()):
            return f"{key}.nvme_path: name a folder on the NVMe disk"
    ratio = _section(settings, _OPTIMIZER).get("ratio", 1.0)
    if ratio != 1.0 and not uses_cpu_adam(settings):
        return (
            f"zero_optimization.{_OPTIMIZER}.ratio = {printable(repr(ratio), 100)} needs DeepSpeed's "
            "optimizer: add zero_force_ds_cpu_optimizer = true, or remove ratio"
        )
    return ""


def unmet_requirement(settings: Mapping[str, Any]) -> str:
    """What this machine lacks for the settings, in a sentence; "" if it lacks nothing.

    Call prepare_deepspeed first. Settings without offloading need nothing.
    """
    on_nvme = [section for section, device in _offloaded(settings) if device == "nvme"]
    for section in on_nvme:
        path = Path(_section(settings, section)["nvme_path"])
        shown = f"zero_optimization.{section}.nvme_path = {printable(str(path), 200)}"
        if not path.is_dir():
            return f"{shown} is not a folder on this machine: make it, or name another"
        if not os.access(path, os.W_OK | os.X_OK):
            return f"{shown} cannot be written: name another folder"
    if on_nvme and (reason := _unbuildable("async_io", "offloading to NVMe")):
        return reason
    if uses_cpu_adam(settings):
        return _unbuildable("cpu_adam", "zero_force_ds_cpu_optimizer = true")
    return ""


def _unbuildable(operation: str, purpose: str) -> str:
    """Why DeepSpeed cannot compile one of its operations here; "" if it can, or was installed with it."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.git_version_info import installed_ops
    from torch.utils.cpp_extension import get_cxx_compiler, is_ninja_available

    if installed_ops.get(operation):
        return ""
    compiler: str = get_cxx_compiler()  # type: ignore[no-untyped-call]
    if not shutil.which(compiler):
        return f"{purpose} needs a C++ compiler, and there is no {printable(compiler)}: install g++"
    if not is_ninja_available():
        return f"{purpose} needs ninja in PATH: install the package ninja (pip install ninja)"
    if operation == "async_io" and not get_accelerator().create_op_builder("AsyncIOBuilder").is_compatible():
        return f"{purpose} needs libaio with its headers: install {_AIO_PACKAGES}"
    return ""


def _offloaded(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The sections that move something, and where to."""
    for section in (_OPTIMIZER, _WEIGHTS):
        if (device := offload_device(settings, section)) != "none":
            yield section, device


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = settings.get("zero_optimization", {}).get(name)
    return section if isinstance(section, Mapping) else {}  # DeepSpeed's parser refuses other types
