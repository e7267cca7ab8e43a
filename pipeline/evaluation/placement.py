"""Whether an evaluation runs on actors of a Ray cluster, or in this process.

The command line asks before it imports Ray or torch, so both are imported only if the answer needs them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.base.inference_config import EvaluateConfig
from tools_service.runtime.address import LOCAL, chosen_address


def runs_on_ray(configs: Sequence[EvaluateConfig]) -> bool:
    """Whether an evaluation without tools of its caller runs on Ray's actors, not in this process."""
    config = configs[0].ray
    if config.actors is not None:
        return config.actors > 0
    if not config.gpus_per_actor or all(each.generation.model.device == "cpu" for each in configs):
        return False
    ray = sys.modules.get("ray")  # else this process is connected to nothing
    if (ray and ray.is_initialized()) or chosen_address(config.address, "ray.address")[0] != LOCAL:
        return True
    import torch

    return torch.cuda.is_available()
