"""What a file asks for, what contradicts it, and what the machine lacks for it, before workers start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.finetuning.step.accelerator import prepare_deepspeed
from pipeline.finetuning.step.deepspeed_settings import packaged_file
from pipeline.finetuning.step.offloading import (
    contradiction,
    offload_device,
    unmet_requirement,
    uses_cpu_adam,
)

pytestmark = pytest.mark.unit


def settings(**sections: Any) -> dict[str, Any]:
    return {"zero_optimization": sections}


CPU = {"device": "cpu"}
NVME = {"device": "nvme", "nvme_path": "/disk"}
CONTRADICTIONS: list[tuple[dict[str, Any], int, str]] = [
    (settings(offload_optimizer=CPU), 0, "offload_optimizer on cpu needs zero_stage = 1 or more"),
    (settings(offload_optimizer=NVME), 2, "offload_optimizer on nvme needs zero_stage = 3"),
    (settings(offload_param=CPU), 2, "offload_param on cpu needs zero_stage = 3"),
    (settings(offload_param={"device": "nvme"}), 3, "offload_param.nvme_path: name a folder"),
    (settings(offload_optimizer={**NVME, "nvme_path": " "}), 3, "offload_optimizer.nvme_path: name a"),
    (settings(offload_optimizer={**NVME, "nvme_path": 3}), 3, "offload_optimizer.nvme_path: name a"),
    (settings(offload_optimizer={"device": "auto"}), 3, "device = 'auto': write none, cpu or nvme"),
    (settings(offload_optimizer={**CPU, "ratio": 0.5}), 3, "ratio = 0.5 needs DeepSpeed's optimizer"),
]


@pytest.mark.parametrize(
    ("values", "stage", "named"), CONTRADICTIONS, ids=[case[2] for case in CONTRADICTIONS]
)
def test_what_cannot_be_honoured_is_named(values: dict[str, Any], stage: int, named: str) -> None:
    assert named in contradiction(values, stage)


def test_what_can_be_honoured_passes() -> None:
    for values, stage in (
        ({}, 0),
        (settings(offload_optimizer={"device": "none"}, offload_param=None), 0),
        (settings(offload_optimizer=CPU), 1),
        (settings(offload_optimizer=CPU, offload_param=NVME), 3),
        (settings(offload_optimizer={**CPU, "ratio": 0.5}) | {"zero_force_ds_cpu_optimizer": True}, 3),
    ):
        assert contradiction(values, stage) == ""


def test_deepspeeds_optimizer_is_used_only_where_a_file_asks_for_it() -> None:
    offloaded = settings(offload_optimizer=CPU)
    assert not uses_cpu_adam(offloaded)
    assert not uses_cpu_adam(offloaded | {"zero_force_ds_cpu_optimizer": False})
    assert uses_cpu_adam(offloaded | {"zero_force_ds_cpu_optimizer": True})
    assert not uses_cpu_adam({"zero_force_ds_cpu_optimizer": True})  # nothing is offloaded
    assert [offload_device(offloaded), offload_device(offloaded, "offload_param")] == ["cpu", "none"]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a compiler and ninja, both of which do nothing, and an NVMe disk."""
    prepare_deepspeed(use_gpu=False)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("compiler", "ninja"):
        (programs / name).write_text("#!/bin/sh\nexit 0\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("CXX", "compiler")
    return programs


def test_offloading_to_the_cpu_by_torch_needs_nothing(machine: Path) -> None:
    (machine / "compiler").unlink()
    assert unmet_requirement(settings(offload_optimizer=CPU, offload_param=CPU)) == ""
    assert unmet_requirement({}) == ""


def test_a_missing_compiler_or_ninja_is_named(machine: Path) -> None:
    values = settings(offload_optimizer=CPU) | {"zero_force_ds_cpu_optimizer": True}
    assert unmet_requirement(values) == ""
    (machine / "ninja").unlink()
    assert "needs ninja in PATH" in unmet_requirement(values)
    (machine / "compiler").unlink()
    assert "needs a C++ compiler, and there is no compiler: install g++" in unmet_requirement(values)


def test_an_nvme_folder_must_exist_and_be_writable(machine: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    values = settings(offload_param={"device": "nvme", "nvme_path": str(disk)})
    assert f"offload_param.nvme_path = {disk} is not a folder on this machine" in unmet_requirement(values)
    disk.write_text("")
    assert "is not a folder" in unmet_requirement(values)
    disk.unlink()
    disk.mkdir(mode=0o555)
    if os.getuid():  # root may write anywhere
        assert f"nvme_path = {disk} cannot be written" in unmet_requirement(values)
    disk.chmod(0o755)
    (machine / "compiler").unlink()
    assert "offloading to NVMe needs a C++ compiler" in unmet_requirement(values)


def test_a_missing_libaio_is_named_with_its_packages(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.accelerator import get_accelerator

    values = settings(offload_optimizer={"device": "nvme", "nvme_path": str(tmp_path)})
    monkeypatch.setenv("CXX", "compiler")
    builder = get_accelerator().get_op_builder("AsyncIOBuilder")
    monkeypatch.setattr(builder, "is_compatible", lambda self, verbose=False: False)
    assert "needs libaio with its headers: install libaio-dev" in unmet_requirement(values)
    monkeypatch.setattr(builder, "is_compatible", lambda self, verbose=False: True)
    assert unmet_requirement(values) == ""


def test_the_packaged_file_for_nvme_names_a_folder_to_edit() -> None:
    assert '"nvme_path": "/mnt/nvme"' in packaged_file("zero3_nvme").read_text()
