"""Checks of the machine, in good and in bad surroundings."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pipeline.cli.doctor import machine
from tools_service.runtime.address import require_cluster

pytestmark = pytest.mark.unit

GIB = 2**30


def meminfo(gib: float) -> str:
    return f"MemTotal: 99 kB\nMemAvailable:  {int(gib * 2**20)} kB\n"


@pytest.mark.parametrize(
    ("gib", "limit", "state"),
    [
        (16, None, "ok"),
        (3, None, "warning"),
        (1, None, "problem"),
        (16, 8 * GIB, "ok"),
        (16, 3 * GIB, "warning"),
        (16, GIB, "problem"),
    ],
)
def test_memory_is_what_machine_and_container_leave(gib: float, limit: int | None, state: str) -> None:
    check = machine.memory(meminfo(gib), limit)
    assert check.state == state
    assert bool(check.advice) == (state != "ok")
    assert ("container" in check.found) == (limit is not None)


def test_memory_that_nobody_tells() -> None:
    assert machine.memory("", None).state == "warning"


def test_disk() -> None:
    states = [machine.disk(Path("/work"), gib * GIB).state for gib in (100, 5, 0)]
    assert states == ["ok", "warning", "problem"]


def test_shared_memory() -> None:
    assert machine.shared_memory(Path("/dev/shm"), GIB).state == "ok"
    small = machine.shared_memory(Path("/dev/shm"), 64 * 2**20)
    assert (small.state, small.found) == ("warning", "64 MiB free in /dev/shm")
    assert "--shm-size" in small.advice
    assert machine.shared_memory(Path("/dev/shm"), None).found == "no /dev/shm"


def test_temporary_folder(tmp_path: Path) -> None:
    environ = {"TMPDIR": str(tmp_path)}
    assert machine.temporary_folder(environ, None).state == "ok"
    assert machine.temporary_folder(environ, lambda: tmp_path / "ray").state == "ok"
    other = machine.temporary_folder(environ, lambda: Path("/tmp/ray"))
    assert (other.state, "RAY_TMPDIR" in other.advice) == ("warning", True)
    missing = machine.temporary_folder({"TMPDIR": str(tmp_path / "none")}, None)
    assert (missing.state, "No such file" in missing.found) == ("warning", True)

    def fails() -> Path:
        raise RuntimeError("too long")

    assert machine.temporary_folder({**environ, "RAY_TMPDIR": str(tmp_path)}, fails).state == "problem"


def test_home(tmp_path: Path) -> None:
    assert machine.home({}, tmp_path).state == "ok"
    assert machine.home({"HF_HOME": str(tmp_path)}, Path("/nowhere")).state == "ok"
    unwritable = machine.home({}, tmp_path / "none")
    assert (unwritable.state, "HF_HOME" in unwritable.advice) == ("warning", True)
    assert machine.home({}, None).state == "warning"


def test_ports() -> None:
    assert machine.ports(lambda port: True).state == "ok"
    taken = machine.ports(lambda port: port != 8_000)
    assert (taken.state, taken.found) == ("warning", "in use: 8000 (serve)")
    assert machine.ports(lambda port: port != 0).state == "problem"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert not machine.port_is_free(listener.getsockname()[1])
    assert machine.port_is_free(0)


def test_ray_address() -> None:
    asked: list[str] = []

    def probe(address: str, source: str) -> None:
        asked.append(address)

    assert machine.ray_address({}, probe).state == "ok"
    assert machine.ray_address({"RAY_ADDRESS": "local"}, probe).state == "ok"
    assert machine.ray_address({"RAY_ADDRESS": "auto"}, probe).found == "auto, not asked"
    assert not asked
    assert machine.ray_address({"RAY_ADDRESS": "head:6379"}, probe).found == "Ray answers at head:6379"
    assert machine.ray_address({"RAY_ADDRESS": "head:6379"}, None).found == "head:6379, not asked"


def test_a_dead_ray_address_is_a_problem_found_by_the_probe_of_the_commands() -> None:
    with socket.socket() as listener:  # bound and not listening: refused at once
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        check = machine.ray_address({"RAY_ADDRESS": address}, require_cluster)
    assert check.state == "problem"
    assert check.found.startswith(f"{address}: no Ray cluster there")
    assert "unset it" in check.advice


def test_limits() -> None:
    assert machine.limits(65_536, -1).found == "65,536 open files, unlimited processes"
    few = machine.limits(1_024, 512)
    assert (few.state, few.advice) == (
        "warning",
        "Ray may run out of them: ulimit -n 65536 and ulimit -u 32768",
    )
    assert machine.limits(1_024, -1).advice == "Ray may run out of them: ulimit -n 65536"


def test_cgroup() -> None:
    values = {"cpu.max": "150000 100000\n", "memory.max": f"{4 * GIB}\n", "pids.max": "max\n"}
    assert machine.cgroup(values, 8).found == "1.5 of 8 CPUs, 4.0 GiB of memory"
    assert machine.cgroup({}, 8).found == "none"
    few = machine.cgroup({"pids.max": "100"}, 8)
    assert (few.state, "--pids-limit" in few.advice) == ("warning", True)
    assert machine.memory_limit({"memory.max": "9223372036854771712"}) is None


def test_demo_files(tmp_path: Path) -> None:
    assert machine.demo_files(tmp_path / "demo").state == "warning"
    weights = tmp_path / "demo" / "models" / "annotator" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    assert machine.demo_files(tmp_path / "demo").state == "ok"
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    pointer = machine.demo_files(tmp_path / "demo")
    assert (pointer.state, pointer.advice) == ("problem", "git lfs pull")


def test_staged_models_are_named(tmp_path: Path) -> None:
    assert machine.staged_models(tmp_path).found.startswith(f"none in {tmp_path}")
    for name, content in (("a--b", '{"source": "a/b"}'), ("broken", "{"), ("other", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(content)
    assert machine.staged_models(tmp_path).found == f"a/b in {tmp_path}"
