"""Peak speeds of GPUs, for plans and for the utilisation that a run reports.

Peaks are from the makers' data sheets, for dense BF16 with FP32 accumulation; figures with sparsity are twice
as high and are not used.
"""

from __future__ import annotations

import re
from typing import Literal

Hardware = Literal["A10", "L4", "L40S", "A100", "H100-PCIe", "H100", "H200", "B200", "MI300X"]

# Peak FLOP/s, and the names that drivers report.
_GPUS: dict[Hardware, tuple[float, str]] = {
    "A10": (125e12, r"NVIDIA A10"),  # NVIDIA A10 data sheet: BF16 125 TFLOPS
    "L4": (121e12, r"NVIDIA L4"),  # NVIDIA L4 data sheet: BF16 242 TFLOPS with sparsity
    "L40S": (362e12, r"NVIDIA L40S"),  # NVIDIA L40S data sheet: BF16 362.05 TFLOPS
    # NVIDIA A100 data sheet, 40 and 80 GB, PCIe and SXM: BF16 312 TFLOPS
    "A100": (312e12, r"NVIDIA A100[- ].*"),
    # NVIDIA H100 data sheet: BF16 with sparsity 1,513 TFLOPS (PCIe) and 1,979 TFLOPS (SXM)
    "H100-PCIe": (756e12, r"NVIDIA H100 PCIe"),
    "H100": (989e12, r"NVIDIA H100 80GB HBM3"),
    "H200": (989e12, r"NVIDIA H200"),  # NVIDIA H200 data sheet, SXM: BF16 1,979 TFLOPS with sparsity
    # NVIDIA HGX B200 (DGX B200's eight: 36 PFLOPS BF16 with sparsity): 2,250 TFLOPS each
    "B200": (2_250e12, r"NVIDIA B200"),
    "MI300X": (1_307e12, r"AMD Instinct MI300X.*"),  # AMD Instinct MI300X data sheet: BF16 1,307.4 TFLOPS
}
PEAK_FLOPS_PER_S = {hardware: peak for hardware, (peak, _) in _GPUS.items()}


def peak_of_device(name: str) -> float | None:
    """Peak FLOP/s of the GPU with this driver `name`; None for an unknown GPU or a MIG slice."""
    peaks = (peak for peak, names in _GPUS.values() if re.fullmatch(names, name))
    return None if " MIG " in name else next(peaks, None)
