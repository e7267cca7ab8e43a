"""CPUs follow the container's limits, not the machine's count."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools_service.base import cpus
from tools_service.base.cpus import available_cpus, limit_threads

pytestmark = pytest.mark.unit

QUOTA, PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"
OWN = "cpu/docker/ab/"
V1 = "4:memory:/docker/ab\n2:cpu,cpuacct:{}\n0::/\n"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 24 CPUs, all of which this process may run on."""
    monkeypatch.setattr(os, "cpu_count", lambda: 24)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(24)))


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        # version 2, in a container: its own group is the root
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/", {"cpu.max": "10000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 24),
        ("0::/", {"cpu.max": "9900000 100000"}, 24),
        ("0::/", {"cpu.max": ""}, 24),
        ("0::/", {"cpu.max": "0 0"}, 24),
        ("0::/", {"cpu.max": "nan 100000"}, 24),
        ("0::/", {"cpu.max": "inf 100000"}, 24),
        ("0::/", {}, 24),
        # version 2, on the host: the tightest of the groups around it
        ("0::/a/b", {"a/b/cpu.max": "400000 100000"}, 4),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "100000 100000"}, 1),
        ("0::/a/b", {"a/other/cpu.max": "100000 100000"}, 24),
        ("0::/../../x", {"cpu.max": "200000 100000"}, 2),
        # version 1
        (V1.format("/"), {"cpu,cpuacct/" + QUOTA: "200000", "cpu,cpuacct/" + PERIOD: "100000"}, 2),
        (V1.format("/docker/ab"), {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        (V1.format("/docker/ab"), {OWN + QUOTA: "500000", OWN + PERIOD: "100000"}, 5),
        (V1.format("/"), {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 24),
        (V1.format("/"), {"cpu/cpu.cfs_quota_us": "100000"}, 24),
        # damaged or missing membership
        ("", {"cpu.max": "200000 100000"}, 24),
        ("nonsense\n:::\n", {}, 24),
        (None, {"cpu.max": "200000 100000"}, 24),
    ],
)  # fmt: skip
def test_a_quota_counts(tmp_path: Path, membership: str | None, files: dict[str, str], expected: int) -> None:
    groups, own = tmp_path / "groups", tmp_path / "own"
    if membership is not None:
        own.write_text(membership)
    for name, content in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(content)
    assert available_cpus(groups, own) == expected


def test_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7})
    assert available_cpus(tmp_path, tmp_path / "none") == 2


@pytest.mark.parametrize(("quota", "before", "after"), [(2, None, "2"), (2, "7", "7"), (24, None, None)])
def test_a_quota_limits_threads(
    monkeypatch: pytest.MonkeyPatch, quota: int, before: str | None, after: str | None
) -> None:
    monkeypatch.setattr(cpus, "available_cpus", lambda: quota)
    monkeypatch.setenv(cpus.THREADS_VARIABLE, "1")  # put back afterwards
    if before is None:
        monkeypatch.delenv(cpus.THREADS_VARIABLE)
    else:
        monkeypatch.setenv(cpus.THREADS_VARIABLE, before)
    limit_threads()
    assert os.environ.get(cpus.THREADS_VARIABLE) == after
