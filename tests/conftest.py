"""What the tests of all packages share: one local Ray cluster for the tests marked `ray`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster with eight logical CPUs, whatever the machine has; there is never more than one."""
    import ray

    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        namespace="tests",
        object_store_memory=256 * 1024**2,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
