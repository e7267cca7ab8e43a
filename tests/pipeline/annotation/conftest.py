"""The tools of the small run, started once for all tests here that annotate on the tests' cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tools_service.config import ToolsConfig


@pytest.fixture(scope="package")
def ray_cluster(ray_cluster: None) -> Iterator[None]:
    """The cluster of the tests, on which the tools of bench/fixtures/small_run.py run: runs share them."""
    from tools_service.serving.deployment import tools_on_ray

    with tools_on_ray(ToolsConfig(), ("Calculator", "Calendar")):
        yield
