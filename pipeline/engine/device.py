"""Numpy arrays become tensors on the model's device, without stalling it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """`array` as a tensor on `device`. On a CPU both share their memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    # On a CPU this is a view of the same memory.
    if device.type != "cuda":
        return tensor
    # A copy from pageable memory waits for all work queued on the GPU; one from
    # pinned memory does not.
    return tensor.pin_memory().to(device, non_blocking=True)
