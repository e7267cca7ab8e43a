"""Fixtures of all tests: one local Ray cluster for those marked `ray`; Hypothesis without deadlines.

The GPU tests also run where neither Ray nor Hypothesis nor pytest's plugins are installed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

# The tests' models are too small for several threads, which wait for each other on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test asks the hub: a name that is no folder would be tried for most of a minute.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Ray Train looks for new checkpoints every two seconds, and a worker waits for it after each of its own.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")

# Nothing stays, neither measurements of the tests' models nor the sessions of a Ray that a test kills. The
# name is short, because paths of sockets have a limit.
_folder = tempfile.TemporaryDirectory(prefix="tests-", ignore_cleanup_errors=True)
os.environ["TOOLFORMER_CACHE"] = os.environ["TMPDIR"] = _folder.name

if find_spec("hypothesis"):
    from hypothesis import HealthCheck, settings

    # No test may depend on how busy the machine is.
    settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let pytest accept the settings of pytest-timeout where that is not installed."""
    if find_spec("pytest_timeout") is None:
        parser.addini("timeout", "seconds; needs pytest-timeout")
        parser.addini("timeout_method", "needs pytest-timeout")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster with eight logical CPUs on any machine; there is never a second one like it."""
    import ray

    from tools_service.runtime.connection import use_loopback_only

    use_loopback_only()
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


@pytest.fixture(scope="module", autouse=True)
def pickled_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """Send a test module's classes to Ray's workers by value.

    By name, each worker would import the test module, and torch, transformers and pytest with it.
    """
    if "ray" not in sys.modules:
        yield
        return
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)
