"""What must be set before DeepSpeed is imported for the first time: where it computes, what it compiles."""

from __future__ import annotations

import os


def prepare_deepspeed(use_gpu: bool) -> None:
    """Choose the accelerator, before DeepSpeed is imported for the first time.

    On a CPU, DeepSpeed would compile a shared-memory all-reduce that only tensor-parallel inference
    calls. That takes a C++ compiler, ninja and minutes (docs/decisions/0005). The entry below
    declares it unavailable before DeepSpeed checks what it can compile; gloo is used instead.
    """
    os.environ["DS_ACCELERATOR"] = "cuda" if use_gpu else "cpu"
    import deepspeed.ops

    if not use_gpu:
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
