"""Peak speeds of GPUs, for plans and for the utilisation that a run reports.

Peaks are from the makers' data sheets, for dense BF16 with FP32 accumulation; figures with sparsity are twice
as high and are not used. How many calls a replica of a tool answers depends on its model and device: the
figures in planning/assumptions.py are from `python -m bench.tools` on one thread of two cores of an AMD EPYC,
with the demo's small models, in lists of 64. Elsewhere they only give the order of magnitude: measure yours
with the same command, and pass the result with --calls-per-s.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

Hardware = Literal["A10", "L4", "L40S", "A100", "H100-PCIe", "H100", "H200", "B200", "MI300X"]
HARDWARE: tuple[Hardware, ...] = get_args(Hardware)

PEAK_FLOPS_PER_S: dict[Hardware, float] = {
    "A10": 125e12,  # NVIDIA A10 data sheet: BF16 125 TFLOPS
    "L4": 121e12,  # NVIDIA L4 data sheet: BF16 242 TFLOPS with sparsity
    "L40S": 362e12,  # NVIDIA L40S data sheet: BF16 362.05 TFLOPS
    "A100": 312e12,  # NVIDIA A100 data sheet, 40 and 80 GB, PCIe and SXM: BF16 312 TFLOPS
    "H100-PCIe": 756e12,  # NVIDIA H100 data sheet, PCIe: BF16 1,513 TFLOPS with sparsity
    "H100": 989e12,  # NVIDIA H100 data sheet, SXM: BF16 1,979 TFLOPS with sparsity
    "H200": 989e12,  # NVIDIA H200 data sheet, SXM: BF16 1,979 TFLOPS with sparsity
    "B200": 2_250e12,  # NVIDIA HGX B200 (DGX B200's eight: 36 PFLOPS BF16 with sparsity): 2,250 TFLOPS each
    "MI300X": 1_307e12,  # AMD Instinct MI300X data sheet: BF16 1,307.4 TFLOPS
}

_DEVICE_NAMES: dict[Hardware, str] = {
    "A10": r"NVIDIA A10",
    "L4": r"NVIDIA L4",
    "L40S": r"NVIDIA L40S",
    "A100": r"NVIDIA A100[- ].*",
    "H100-PCIe": r"NVIDIA H100 PCIe",
    "H100": r"NVIDIA H100 80GB HBM3",
    "H200": r"NVIDIA H200",
    "B200": r"NVIDIA B200",
    "MI300X": r"AMD Instinct MI300X.*",
}


def peak_of_device(name: str) -> float | None:
    """Peak FLOP/s of the GPU with this driver `name`; None for an unknown GPU or a MIG slice."""
    if " MIG " in name:
        return None
    known = (hardware for hardware, names in _DEVICE_NAMES.items() if re.fullmatch(names, name))
    return next((PEAK_FLOPS_PER_S[hardware] for hardware in known), None)
