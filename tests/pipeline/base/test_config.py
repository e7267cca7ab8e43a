"""The configuration says the paper's values, and refuses what is not one of its fields or out of range."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.base import config
from pipeline.base.config import AnnotateConfig, MergeConfig, MethodConfig, ModelConfig
from pipeline.base.finetune_config import FinetuneConfig
from tools_service.base.settings import Frozen
from tools_service.contract.declarations import PACKAGED
from tools_service.contract.spec import ToolMethod

pytestmark = pytest.mark.unit

CONFIGS = [
    c for _, c in inspect.getmembers(config, inspect.isclass) if issubclass(c, Frozen) and c is not Frozen
]


@pytest.mark.parametrize(
    ("tool", "tau_s", "k", "m", "tau_f"),
    [
        ("QA", 0.05, 5, 5, 1.0),
        ("WikiSearch", 0.05, 5, 5, 1.0),
        ("Calendar", 0.05, 5, 5, 1.0),
        ("Calculator", 0.0, 20, 10, 0.5),
        ("MT", 0.0, 20, 10, 0.5),
    ],
)
def test_sampling_and_filtering_defaults_are_appendix_a(
    tool: str, tau_s: float, k: int, m: int, tau_f: float
) -> None:
    method = MethodConfig().of(tool)
    assert (method.tau_s, method.k, method.m, method.tau_f) == (tau_s, k, m, tau_f)


def test_finetuning_defaults_are_section_4_1_and_appendix_b() -> None:
    paper = FinetuneConfig()
    assert (paper.sequence_length, paper.batch_size, paper.learning_rate) == (1024, 128, 1e-5)
    assert (paper.warmup_share, paper.max_steps, paper.evaluate_every, paper.held_out) == (
        0.1,
        2000,
        500,
        1000,
    )
    assert (paper.workers, paper.zero_stage, paper.model.dtype) == (8, 3, "bfloat16")
    assert MergeConfig().max_examples == 25_000


def test_every_tool_has_settings_of_its_own() -> None:
    changed = {tool: ToolMethod(k=index + 1) for index, tool in enumerate(PACKAGED)}
    method = MethodConfig(**{tool.lower(): settings for tool, settings in changed.items()})
    assert {tool: method.of(tool).k for tool in PACKAGED} == {tool: changed[tool].k for tool in PACKAGED}
    assert not method.of("Calendar").takes_input  # what a tool is comes from its declaration


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"method": {"calculator": {"k": 0}}}, "method.calculator.k"),
        ({"method": {"calculator": {"tau_s": 1.5}}}, "method.calculator.tau_s"),
        ({"method": {"tools": ["Calculator", "Abacus"]}}, ""),
        ({"method": {"tools": ["Calculator", "A-b"]}}, "method.tools.1"),
        ({"method": {"abacus": {}}}, ""),
        ({"tools": {"abacus": {}}}, "tools.abacus"),
        ({"method": {"tools": []}}, "method"),
        ({"method": {"tools": ["MT", "MT"]}}, "method"),
        ({"corpus": {"path": ["x"]}}, "corpus.path"),
        ({"model": {"dtype": "float16"}}, "model.dtype"),
        ({"ray": {"gpus_per_actor": -1}}, "ray.gpus_per_actor"),
        ({"ray": {"actors": 4, "max_actors": 3}}, "ray"),
    ],
)
def test_an_unknown_field_or_a_value_out_of_range_is_an_error_naming_it(
    values: dict[str, object], field: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        AnnotateConfig.model_validate(values)
    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [field]


def test_a_configuration_cannot_be_changed_and_survives_json() -> None:
    settings = AnnotateConfig()
    with pytest.raises(ValidationError):
        settings.output = settings.output / "elsewhere"  # type: ignore[misc]
    assert AnnotateConfig.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize("model", CONFIGS, ids=lambda model: model.__name__)
def test_every_field_has_a_help_text(model: type[Frozen]) -> None:
    assert model.__doc__
    for name, field in model.model_fields.items():
        described = inspect.isclass(field.annotation) and issubclass(field.annotation, Frozen)
        assert described or field.description, f"{model.__name__}.{name} needs a docstring"


@pytest.mark.parametrize(
    ("gpus", "placement"), [(0.0, ("cpu", 1)), (0.5, ("auto", 0.5)), (1.0, ("auto", 1)), (2.0, ("auto", 2))]
)
def test_a_model_runs_on_the_gpus_of_its_process(gpus: float, placement: tuple[str, float]) -> None:
    model = ModelConfig(path="m").placed(gpus)
    assert (model.path, model.device, model.gpus) == ("m", *placement)


def test_only_a_folder_on_this_machine_gets_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert ModelConfig(path="model").with_absolute_path().path == str((tmp_path / "model").resolve())
    assert ModelConfig(path="owner/name").with_absolute_path().path == "owner/name"
