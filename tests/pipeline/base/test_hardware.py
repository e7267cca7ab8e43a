"""Peak FLOP/s by the name of a device."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.base.hardware import PEAK_FLOPS_PER_S, peak_of_device

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("device", "hardware"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A10G", None),  # half an A10
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA H100 NVL", None),
    ],
)
def test_peaks_are_of_whole_devices_on_a_data_sheet(device: str, hardware: Any) -> None:
    assert peak_of_device(device) == (hardware and PEAK_FLOPS_PER_S[hardware])
