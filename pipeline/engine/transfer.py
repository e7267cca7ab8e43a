"""Arrays on their way to the device that a model is on.

In: numpy arrays. Out: tensors there. A copy from ordinary memory makes the host wait for everything the
device still has to do; one from pinned memory does not.
"""

from __future__ import annotations

import numpy as np
import torch


def sent(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array on `device`, without waiting for what that is doing. On a CPU both share their memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
