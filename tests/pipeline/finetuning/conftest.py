"""A process group of one process, for what runs in DeepSpeed without Ray."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from pipeline.finetuning.deepspeed_settings import prepare_deepspeed


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    """This process as the only worker."""
    prepare_deepspeed(use_gpu=False)
    with socket.socket() as free, pytest.MonkeyPatch.context() as environment:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            environment.setenv(name, value)
        environment.setenv("MASTER_ADDR", "127.0.0.1")
        environment.setenv("MASTER_PORT", port)
        free.close()
        dist.init_process_group("gloo")
        yield
        dist.destroy_process_group()
