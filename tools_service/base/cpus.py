"""How many CPUs this process may use: its affinity and the quotas of its control groups.

os.cpu_count() counts the machine's. In a container on a large host that is many times more than the
container may use, and a process per counted CPU would only take turns with the others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
THREADS_VARIABLE = "OMP_NUM_THREADS"


def available_cpus(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Return the CPUs that this process may use, at least 1; a quota of 1.5 CPUs counts as 2."""
    cpus = len(os.sched_getaffinity(0))
    return max(1, min([cpus, *(math.ceil(quota) for quota in _quotas(cgroups, membership))]))


def limit_threads() -> None:
    """Let numeric libraries start no more threads than a quota allows. Call before torch's import.

    They follow the affinity by themselves, but not a quota. A set variable stays as it is.
    """
    if available_cpus() < len(os.sched_getaffinity(0)):
        os.environ.setdefault(THREADS_VARIABLE, str(available_cpus()))


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """Yield the limits, in CPUs, of this process's control groups and the groups around them."""
    try:
        entries = membership.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for entry in entries:
        _, _, rest = entry.partition(":")
        controllers, _, path = rest.partition(":")
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        # A container often sees its own group as the root, under the path that the host knows.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for folder in (cgroups / controllers, cgroups / "cpu", cgroups / "unified", cgroups):
            for depth in range(len(parts), -1, -1):
                quota = _quota(folder.joinpath(*parts[:depth]))
                if quota is not None:
                    yield quota


def _quota(folder: Path) -> float | None:
    """Return the limit of one group: of version 2 (cpu.max) or 1; None if it has none."""
    try:
        if (file := folder / "cpu.max").is_file():
            quota, period = file.read_text(encoding="ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
        limit = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number
        return None
    return limit if 0 < limit < math.inf else None
