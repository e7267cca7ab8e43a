"""A process group of one process, for what runs in DeepSpeed without Ray."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.nn.functional as F

from tests.pipeline.finetuning.process_group import free_port, worker


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    """This process as the only worker."""
    with worker(0, 1, free_port()):
        yield


@pytest.fixture(autouse=True)
def own_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """At stage 3 DeepSpeed replaces torch's linear for the whole process, other tests included."""
    monkeypatch.setattr(F, "linear", F.linear)
