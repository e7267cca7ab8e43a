"""Torch process groups on this machine, for the tests of fine-tuning without Ray."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from pipeline.finetuning.step.accelerator import prepare_deepspeed


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def worker(rank: int, workers: int, port: int) -> Iterator[None]:
    """This process as worker `rank`; the environment is as before at the end."""
    prepare_deepspeed(use_gpu=False)
    before = dict(os.environ)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        import deepspeed.comm

        # DeepSpeed forgets the groups that it has kept, so that another module can begin anew.
        (deepspeed.comm if deepspeed.comm.is_initialized() else dist).destroy_process_group()
        os.environ.clear()
        os.environ |= before
