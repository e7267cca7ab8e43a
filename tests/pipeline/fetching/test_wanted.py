"""Which models a run reads."""

from __future__ import annotations

import pytest

from pipeline.base.config import ModelConfig
from pipeline.base.fetch_config import FetchConfig
from pipeline.cli.commands import COMMANDS
from pipeline.cli.recipes import RECIPES
from pipeline.fetching.wanted import unstaged, wanted_models
from tools_service.config import ToolsConfig

pytestmark = pytest.mark.unit


def named(config: FetchConfig) -> dict[str, tuple[str, str]]:
    return {model.name: (model.field, model.dtype) for model in wanted_models(config)}


def test_the_models_of_each_recipe() -> None:
    configs = {name: COMMANDS["fetch"].config(recipe()) for name, recipe in RECIPES.items()}
    assert named(configs["paper"]) == {  # type: ignore[arg-type]
        "EleutherAI/gpt-j-6b": ("model.path", "bfloat16"),
        "google/flan-t5-large": ("tools.qa.model", "float32"),
        "facebook/nllb-200-distilled-600M": ("tools.mt.model", "float32"),
    }
    assert [*named(configs["single_gpu"])] == ["openai-community/gpt2-large"]  # type: ignore[arg-type]


def test_the_encoder_is_wanted_where_the_retriever_needs_it_also_behind_qa() -> None:
    for retriever, wanted in (("bm25", False), ("dense", True), ("hybrid", True)):
        tools = ToolsConfig.model_validate({"wikisearch": {"retriever": retriever}})
        fields = [field for field, _ in named(FetchConfig(tools=tools, for_tools=("QA",))).values()]
        assert ("tools.wikisearch.encoder.model" in fields) == wanted


def test_named_models_take_the_place_of_the_run_s_and_each_counts_once() -> None:
    assert [*named(FetchConfig(models=("a/b", "c", "a/b"), for_tools=("QA",)))] == ["a/b", "c"]
    tools = ToolsConfig.model_validate({"qa": {"model": "a/b"}, "mt": {"model": "a/b"}})
    assert [*named(FetchConfig(tools=tools, for_tools=("QA", "MT")))] == ["EleutherAI/gpt-j-6b", "a/b"]


def test_unstaged_models_are_those_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", "/nowhere")
    assert unstaged(ModelConfig(), ToolsConfig(), ["QA"]) == ["EleutherAI/gpt-j-6b", "google/flan-t5-large"]
    assert unstaged(ModelConfig(path="demo/models/annotator"), ToolsConfig(), ["Calculator"]) == []
