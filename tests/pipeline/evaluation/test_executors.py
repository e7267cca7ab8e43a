"""Where an evaluation runs: this process, or actors on Ray."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.base.inference_config import ActorsConfig, EvaluateConfig
from pipeline.evaluation.executors import LocalExecutor, executor
from pipeline.evaluation.ray_executor import RayExecutor
from tools_service.config import ToolsConfig
from tools_service.runtime.address import ADDRESS_VARIABLE
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit


def config(device: str = "auto", **resources: Any) -> EvaluateConfig:
    config = EvaluateConfig(ray=ActorsConfig(**resources))
    model = config.generation.model.model_copy(update={"device": device})
    return config.model_copy(update={"generation": config.generation.model_copy(update={"model": model})})


@pytest.mark.parametrize(
    ("device", "gpu", "address", "resources", "on_ray"),
    [
        ("auto", False, None, {}, False),
        ("auto", True, None, {}, True),
        ("cpu", True, None, {}, False),
        ("auto", True, None, {"actors": 0}, False),
        ("cpu", False, None, {"actors": 2, "gpus_per_actor": 0}, True),
        ("auto", True, None, {"gpus_per_actor": 0}, False),
        ("auto", False, "10.0.0.1:6379", {}, True),  # of a node without a GPU
        ("auto", False, None, {"address": "auto"}, True),
    ],
)
def test_ray_is_used_where_there_are_gpus(
    device: str, gpu: bool, address: str | None, resources: dict[str, Any], on_ray: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    if address:
        monkeypatch.setenv(ADDRESS_VARIABLE, address)
    with executor([config(device, **resources)], None) as chosen:
        assert isinstance(chosen, RayExecutor if on_ray else LocalExecutor)


def test_the_tools_of_a_caller_are_in_this_process() -> None:
    with executor([config(actors=2)], LocalTools({}, ToolsConfig())) as chosen:
        assert isinstance(chosen, LocalExecutor)
