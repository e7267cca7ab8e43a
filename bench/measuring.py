"""Wall time, CPU time and peak memory of a piece of work, and the FLOP/s of a matrix product."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tools_service.base.packed_linear import onednn_takes, packed_linear

MATRIX_S = 1.0
MATRIX_RUNS = 3
CPU_SIZE = 1_024


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
    """FLOP/s of a square matrix product, by `clock`, through the library that is fastest."""
    return max(matrix_rates(device, dtype, clock).values())


@torch.inference_mode()
def matrix_rates(
    device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """FLOP/s of a square matrix product, by library: the best of those that one second
    has room for, and of three at least.

    torch's own product runs through MKL or oneDNN, by data type and processor. On a CPU oneDNN is
    also measured alone, with a weight that is packed beforehand, as in a packed linear layer.
    """
    size = 8_192 if device.type == "cuda" else CPU_SIZE
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    products: dict[str, Callable[[], Any]] = {"torch": lambda: left @ right}
    if device.type == "cpu" and onednn_takes(dtype):
        packed = right.to_mkldnn()
        products["oneDNN"] = lambda: packed_linear(left, packed, None)
    best: dict[str, float] = {}
    for library, product in products.items():
        product()
        began, runs = time.perf_counter(), 0
        while runs < MATRIX_RUNS or time.perf_counter() - began < MATRIX_S:
            runs += 1
            start = clock()
            product()
            if device.type == "cuda":
                torch.cuda.synchronize()
            best[library] = max(best.get(library, 0.0), 2 * size**3 / (clock() - start))
    return best
