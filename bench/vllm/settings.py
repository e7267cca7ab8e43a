"""vLLM's arguments and variables for a model. How they were chosen: docs/decisions/0014."""

from __future__ import annotations

import os
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import torch

from pipeline.engine.model import LanguageModel

_SHARE_OF_FREE = 0.9  # of the GPU's free memory is given to vLLM


def engine_settings(model: LanguageModel, path: str) -> dict[str, Any]:
    """Arguments of vllm.LLM for this model."""
    settings: dict[str, Any] = {
        "model": path,
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "enable_prefix_caching": True,
        "block_size": 32,  # the smallest on a CPU; the last block of a context is never cached
        "max_model_len": model.max_positions,
        "max_num_seqs": 512,
        "max_num_batched_tokens": 16_384,
        "max_logprobs": -1,
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "seed": 0,
    }
    if model.device.type == "cuda":  # vLLM assumes an empty GPU, but the engine's model stays on it
        settings["block_size"] = 16
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(model.device)
        settings["gpu_memory_utilization"] = round(_SHARE_OF_FREE * free / total, 3)
    return settings


def environment(python: str, device: torch.device) -> dict[str, str]:
    """The process's variables: vLLM in one process, with as many bound threads as this process has.

    Variables that the user has set for vLLM, and LD_PRELOAD, keep their values.
    """
    env = dict(os.environ)
    defaults = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if device.type == "cpu":
        cores = sorted(os.sched_getaffinity(0))[: torch.get_num_threads()]
        defaults |= {"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))}
        env["OMP_NUM_THREADS"] = str(len(cores))
        if libraries := preloaded(Path(python).absolute().parent.parent / "lib"):
            defaults["LD_PRELOAD"] = ":".join(libraries)
    return defaults | env


def preloaded(folder: Path) -> list[str]:
    """The libraries that vLLM's manual wants preloaded on a CPU, from `folder` or the system's.

    Intel's OpenMP, which vLLM installs there, and tcmalloc.
    """
    openmp = [str(file) for file in [folder / "libiomp5.so"] if file.is_file()]
    tcmalloc = [str(file) for file in sorted(folder.glob("libtcmalloc_minimal.so.?"))]
    if not tcmalloc and (name := find_library("tcmalloc_minimal")):
        tcmalloc = [name]
    return tcmalloc[:1] + openmp
