"""SGLang's arguments and variables for a model. How they were chosen: docs/decisions/0014."""

from __future__ import annotations

import os
from typing import Any

import torch

from pipeline.engine.model import LanguageModel

_SHARE_OF_FREE = 0.9  # of the GPU's free memory is given to SGLang
_CPU_CACHE_TOKENS = 65_536


def engine_settings(model: LanguageModel, path: str) -> dict[str, Any]:
    """Arguments of sglang.Engine for this model."""
    settings: dict[str, Any] = {
        "model_path": path,
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "context_length": model.max_positions,
        "max_running_requests": 512,
        "chunked_prefill_size": 16_384,
        "max_prefill_tokens": 16_384,
        "skip_tokenizer_init": True,
        "log_level": "warning",
        "random_seed": 0,
        # Without it the idle engine keeps a core busy, which the other systems need.
        "sleep_on_idle": True,
    }
    if model.device.type == "cuda":  # the engine's model stays on the GPU
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(model.device)
        return settings | {"mem_fraction_static": round(_SHARE_OF_FREE * free / total, 3)}
    cpu = {"attention_backend": "torch_native", "disable_overlap_schedule": True}
    return settings | cpu | {"max_total_tokens": _CPU_CACHE_TOKENS}


def environment(python: str, device: torch.device) -> dict[str, str]:
    """The process's variables, with as many bound threads as this process has.

    Variables that the user has set for SGLang keep their values.
    """
    env = dict(os.environ)
    if device.type != "cpu":
        return env
    cores = sorted(os.sched_getaffinity(0))[: torch.get_num_threads()]
    bound = ",".join(map(str, cores))
    env["OMP_NUM_THREADS"] = str(len(cores))
    return {"SGLANG_USE_CPU_ENGINE": "1", "SGLANG_CPU_OMP_THREADS_BIND": bound} | env
