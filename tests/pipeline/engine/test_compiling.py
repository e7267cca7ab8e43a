"""Compiled norms and MLPs: the same annotations, and a model that runs without a compiler too."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.fixtures import small_run as annotating
from bench.fixtures.small_models import ARCHITECTURES, causal_lm, language_model
from pipeline.base.config import MethodConfig, ModelConfig
from pipeline.base.records import Annotation
from pipeline.engine import loading
from pipeline.engine.compiling import compile_layers
from pipeline.engine.loading import load_language_model, prepare_language_model
from pipeline.engine.model import LanguageModel
from pipeline.method.annotator import Annotator
from tools_service.config import ToolsConfig
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def compiler() -> None:
    torch.compiler.reset()


@pytest.fixture
def method(tmp_path: Path) -> MethodConfig:
    return annotating.method(annotating.write_prompts(tmp_path / "prompts"))


def annotate(model: LanguageModel, method: MethodConfig) -> list[Annotation]:
    tools = LocalTools.start(ToolsConfig(), ("Calculator", "Calendar"))
    return Annotator(model, tools, method).annotate(annotating.texts(6))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_annotations_are_those_of_the_model_as_it_is(architecture: str, method: MethodConfig) -> None:
    """Traced and run by torch, not by Triton: what is compiled, how often, and what comes out."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = language_model(architecture, "pieces")
    copied = causal_lm(architecture, model.vocabulary_size)
    copied.load_state_dict(model.model.state_dict())
    assert compile_layers(copied, backend)
    compiled = annotate(prepare_language_model(copied, model.tokenizer), method)
    assert any(one.calls for one in compiled)
    for one, other in zip(annotate(model, method), compiled, strict=True):
        assert one.funnel == other.funnel
        assert [call.l_plus for call in other.calls] == pytest.approx([call.l_plus for call in one.calls])
    assert 0 < len(graphs) <= 4, "compiled anew for every length or layer"


def test_without_a_compiler_the_model_runs_as_it_is(
    method: MethodConfig, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: Any) -> Any:
        raise FileNotFoundError("no C++ compiler\nat all")

    model = language_model("llama", "pieces")
    copied = causal_lm("llama", model.vocabulary_size)
    copied.load_state_dict(model.model.state_dict())
    with caplog.at_level(logging.WARNING):
        assert not compile_layers(copied, missing)
    assert "nothing was compiled" in caplog.text
    assert "no C++ compiler" in caplog.text
    assert annotate(prepare_language_model(copied, model.tokenizer), method) == annotate(model, method)


def test_on_a_cpu_the_option_is_ignored_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = language_model("llama", "pieces")
    model.model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    compiled: list[object] = []
    monkeypatch.setattr(loading, "compile_layers", compiled.append)
    config = ModelConfig(path=str(tmp_path), dtype="float32", device="cpu")
    load_language_model(config)
    assert "model.compile" not in caplog.text
    load_language_model(config.model_copy(update={"compile": True}))
    assert not compiled
    assert "model.compile: ignored on a CPU" in caplog.text


def test_a_torch_without_a_limit_for_each_module_gets_one_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile

    def as_in_2_11(model: Any = None, *, dynamic: bool | None = None, backend: Any = "inductor") -> Any:
        return compiled(model, dynamic=dynamic, backend=backend)

    monkeypatch.setattr(torch, "compile", as_in_2_11)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    assert compile_layers(causal_lm("llama", 420), backend="eager")
    assert torch._dynamo.config.recompile_limit == 64
