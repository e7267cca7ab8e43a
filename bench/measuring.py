"""Wall time, CPU time and peak memory of a piece of work, and the FLOP/s of a matrix product."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

MATRIX_S = 1.0


@contextmanager
def measured(device: torch.device) -> Iterator[dict[str, float]]:
    """wall_s, cpu_s and peak_mib of the block. The memory is the GPU's, or on a CPU the process's."""
    timing: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak to the present size
    wall, cpu = time.perf_counter(), time.process_time()
    yield timing
    if device.type == "cuda":
        torch.cuda.synchronize()
    timing["wall_s"], timing["cpu_s"] = time.perf_counter() - wall, time.process_time() - cpu
    timing["peak_mib"] = _peak_mib(device)


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM")), float("nan"))


def matrix_rate(
    device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter
) -> float:
    """FLOP/s of a square matrix product, by `clock`: the best of those that one second has room for."""
    size = 8_192 if device.type == "cuda" else 1_024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, began = 0.0, time.perf_counter()
    while time.perf_counter() - began < MATRIX_S:
        start = clock()
        _ = left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (clock() - start))
    return best
