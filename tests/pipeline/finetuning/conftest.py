"""A process group of one process, for what runs in DeepSpeed without Ray."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pipeline.finetuning.process_group import free_port, worker


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    """This process as the only worker."""
    with worker(0, 1, free_port()):
        yield
