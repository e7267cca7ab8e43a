"""Trials of small texts with a small model, and the options that they are made with."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.fixtures import small_run
from pipeline.base.config import MethodConfig
from pipeline.method.selection import select
from pipeline.trying.trial import Trial, try_text
from tools_service.config import ToolsConfig
from tools_service.syntax.prompts import load_prompt
from tools_service.tools.client import LocalTools

TEXTS = 6


@pytest.fixture(scope="module")
def method(tmp_path_factory: pytest.TempPathFactory) -> MethodConfig:
    """The calculator alone, with a threshold that some calls reach."""
    prompts = small_run.write_prompts(tmp_path_factory.mktemp("prompts"))
    method = small_run.method(prompts)
    settings = method.of("Calculator").model_copy(update={"m": 8, "tau_f": -0.5})
    return method.with_section("Calculator", settings).model_copy(update={"tools": ("Calculator",)})


@pytest.fixture(scope="module")
def tools() -> LocalTools:
    return LocalTools.start(ToolsConfig(), ("Calculator",))


@pytest.fixture(scope="module")
def trials(method: MethodConfig, tools: LocalTools) -> list[Trial]:
    model = small_run.annotator_model()
    prompt = load_prompt("Calculator", method.prompts, None)
    return [
        try_text(model, tools, prompt, method, text, select("Calculator", text, method))
        for text in small_run.texts(TEXTS)
    ]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/, prompts/ and pages/."""
    folder: Path = tmp_path_factory.mktemp("world")
    small_run.write_world(folder, pages=9)
    return folder
