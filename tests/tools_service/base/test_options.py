"""Old option names on both command lines."""

from __future__ import annotations

import pytest

from pipeline.cli.main import parse as parse_pipeline
from tools_service.base.options import current_options
from tools_service.commands import Call
from tools_service.commands import parse as parse_tools

pytestmark = pytest.mark.unit


def test_only_the_last_component_of_an_option_is_renamed() -> None:
    before = [
        "--a.batch_tokens=b.batch-tokens",
        "--batch-tokens",
        "8",
        "--c.max-batch-tokens",
        "batch-tokens",
    ]
    after = ["--a.max-batch-tokens=b.batch-tokens", "--max-batch-tokens", "8", *before[3:]]
    assert current_options(before) == after


@pytest.mark.parametrize("name", ["batch-tokens", "batch_tokens", "max-batch-tokens", "max_batch_tokens"])
def test_pipeline_accepts_old_and_current_names(name: str) -> None:
    argv = [f"--model.{name}", "64", f"--tools.qa.{name}=65", f"--tools.mt.{name}", "66"]
    config = parse_pipeline("annotate", argv).config
    tools = config.tools
    sizes = (config.model.max_batch_tokens, tools.qa.max_batch_tokens, tools.mt.max_batch_tokens)
    assert sizes == (64, 65, 66)


@pytest.mark.parametrize("name", ["batch-tokens", "batch_tokens", "max-batch-tokens"])
def test_tools_service_accepts_old_and_current_names(name: str) -> None:
    call = parse_tools(["call", "MT", "hallo", f"--mt.{name}", "65", f"--qa.{name}=66"])
    assert isinstance(call, Call)
    assert (call.config.mt.max_batch_tokens, call.config.qa.max_batch_tokens) == (65, 66)
