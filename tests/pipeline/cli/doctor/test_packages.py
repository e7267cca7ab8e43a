"""Checks of the software, in good and in bad surroundings."""

from __future__ import annotations

import pytest

from pipeline.cli.doctor import packages
from pipeline.cli.doctor.check import Check

pytestmark = pytest.mark.unit


def test_python() -> None:
    assert packages.python_version((3, 11, 9), "/venv/python", in_venv=True).state == "ok"
    assert "no virtual environment" in packages.python_version((3, 11), "python", in_venv=False).found
    wrong = packages.python_version((3, 12, 1), "python", in_venv=True)
    assert (wrong.state, wrong.found) == ("problem", "3.12 at python")
    assert "3.11" in wrong.advice


@pytest.mark.parametrize(
    ("version", "ranges", "expected"),
    [
        ("2.13.0+cpu", ">=2.11,<2.14", True),
        ("2.14.0", ">=2.11,<2.14", False),
        ("2.9", ">=2.11,<2.14", False),
        ("0.19.8", ">=0.19.8,<0.20", True),
        ("2025.3.2", ">=2025.3", True),
        ("1", "", True),
        ("1.0rc1", ">=1,<2", True),
    ],
)
def test_versions_are_compared_by_number(version: str, ranges: str, expected: bool) -> None:
    assert packages.fits(version, ranges) is expected


def test_packages() -> None:
    needed = ["torch>=2.11,<2.14", "ray[data,serve]>=2.60,<3", "lm_eval>=0.4 ; extra == 'harness'"]
    installed = {"torch": "2.13.0", "ray": "2.60.1"}
    assert packages.packages(needed, installed.get) == Check("packages", "ok", "3 requirements")
    missing = packages.packages(needed, {"ray": "2.60.1"}.get)
    assert (missing.state, missing.found) == ("problem", "missing: torch")
    assert "pip install -r requirements.txt" in missing.advice
    wrong = packages.packages(needed, {**installed, "ray": "2.50"}.get)
    assert (wrong.state, wrong.found) == ("problem", "wrong version: ray 2.50 (>=2.60,<3)")
    many = packages.packages([f"p{n}" for n in range(9)], {}.get)
    assert many.found == "missing: p0, p1, p2, p3 and 5 more"
    assert packages.packages([], installed.get).state == "warning"


def test_gpu() -> None:
    card = "NVIDIA H100, 550.54, 81559 MiB\n"
    assert packages.gpu(card, "12.8", 1).state == "ok"
    assert packages.gpu(None, None, 0).found.startswith("none: models run on the CPU")
    cpu_build = packages.gpu(card, None, 0)
    assert (cpu_build.state, "build for CUDA" in cpu_build.advice) == ("problem", True)
    assert packages.gpu(card, "12.8", 0).advice == "update the driver"
    assert packages.gpu(card, None, None).state == "problem"


def test_compiler() -> None:
    everything = {"g++": "/usr/bin/g++", "ninja": "/usr/bin/ninja"}
    assert packages.compiler(everything.get, {}, gpus=1).found == "g++, ninja"
    assert packages.compiler({"/opt/cc": "x", "ninja": "x"}.get, {"CXX": "/opt/cc"}, gpus=1).state == "ok"
    assert packages.compiler({}.get, {}, gpus=0).state == "ok"
    missing = packages.compiler({"g++": "x"}.get, {}, gpus=1)
    assert (missing.state, missing.found) == ("warning", "no ninja")
    assert "apt install" in missing.advice


def test_hub() -> None:
    asked: list[str] = []

    def answers(address: str) -> None:
        asked.append(address)

    assert "not asked" in packages.hub({}, None).found
    assert packages.hub({"HF_HUB_OFFLINE": "1"}, answers).state == "ok"
    assert not asked
    assert packages.hub({"HF_ENDPOINT": "http://mirror"}, answers).found == "http://mirror answers"
    unreachable = packages.hub({}, lambda address: "no route to host")
    assert (unreachable.state, "HF_HUB_OFFLINE=1" in unreachable.advice) == ("warning", True)
