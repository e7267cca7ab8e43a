"""tools.json: what a server needs to decode with the calls that a model learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bench.fixtures.small_models import tokenizer
from pipeline.storage.tools_json import TOOLS, read_tools, write_tools
from tools_service.base.errors import ConfigurationError
from tools_service.contract.spec import ToolSpec
from tools_service.syntax.calls import linearise

pytestmark = pytest.mark.unit

SUM = {
    "name": "Sum",
    "class": "some_package.tools:Sum",
    "settings": {"address": "http://10.0.0.1", "token": "secret"},
    "description": "Adds numbers.",
    "parameters": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
    "max_call_tokens": 33,
    "arguments": "named",
}


def augmented(folder: Path, calls: dict[str, int], **values: Any) -> Path:
    folder.mkdir()
    manifest = {"tools": {name: {"calls": number} for name, number in calls.items()}, **values}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_tools_are_as_merge_declares_them(tmp_path: Path) -> None:
    spec = ToolSpec.model_validate(SUM).model_dump(mode="json")
    words = tokenizer("pieces")
    data = augmented(tmp_path / "augmented", {"Sum": 7, "QA": 0}, tool_specs=[spec])
    write_tools(tmp_path, data, words)
    learned = read_tools(tmp_path)
    assert learned is not None
    [tool] = learned.tools  # QA has no call in C*
    assert (tool.name, tool.description, tool.max_call_tokens) == ("Sum", "Adds numbers.", 33)
    assert (tool.arguments, tool.takes_input, tool.dated) == ("named", True, False)
    assert tool.parameters is not None
    jsonschema.Draft202012Validator.check_schema(tool.parameters)
    assert (learned.k, learned.max_calls) == (10, 1)
    assert "secret" not in (tmp_path / TOOLS).read_text()
    assert "10.0.0.1" not in (tmp_path / TOOLS).read_text()


def test_the_markers_write_a_call(tmp_path: Path) -> None:
    words = tokenizer("pieces")
    write_tools(tmp_path, augmented(tmp_path / "augmented", {"Calculator": 1}), words)
    learned = read_tools(tmp_path)
    assert learned is not None
    syntax = learned.syntax
    written = f"{syntax.api_start}Calculator(1 + 1){syntax.arrow}2{syntax.api_end}"
    assert written == linearise("Calculator", "1 + 1", "2")
    assert words.decode(list(syntax.api_start_tokens)).strip() == syntax.api_start.strip()


def test_earlier_versions_of_merge_named_the_tools_only(tmp_path: Path) -> None:
    data = augmented(tmp_path / "augmented", {"Calculator": 2, "Removed": 1})
    write_tools(tmp_path, data, tokenizer("pieces"))
    learned = read_tools(tmp_path)
    assert learned is not None
    installed, unknown = learned.tools
    assert installed.description
    assert installed.parameters is not None
    assert (unknown.name, unknown.parameters) == ("Removed", None)


@pytest.mark.parametrize("content", ["{}", "[", '{"tools": {"QA": {}}}', '{"tools": 7}'])
def test_without_calls_there_is_no_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    write_tools(tmp_path, tmp_path, tokenizer("pieces"))
    assert read_tools(tmp_path) is None


def test_a_name_on_the_hub_has_no_file() -> None:
    assert read_tools(Path("openai-community/gpt2-large")) is None


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2, "tools": []}', '{"tools": []}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / TOOLS).write_text(content)
    with pytest.raises(ConfigurationError, match=r"tools\.json is not one that finetune writes"):
        read_tools(tmp_path)
