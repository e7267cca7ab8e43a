"""The five prompt files, and what is refused of a user's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools_service.contract.declarations import PACKAGED
from tools_service.syntax.calls import Malformed, parse_call
from tools_service.syntax.prompts import PromptError, load_prompt

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("tool", PACKAGED)
def test_every_tool_has_a_prompt_with_well_formed_demonstrations(tool: str) -> None:
    template = load_prompt(tool)
    assert template.prefix.endswith("\n\nInput:")
    assert template.suffix == "\nOutput:"
    pairs = re.findall(r"^Input: (.*)\nOutput: (.*)$", template.prefix, flags=re.MULTILINE)
    assert 4 <= len(pairs) <= 6
    for text, annotated in pairs:
        drawn = re.findall(r" \[([^\[]*\])", annotated)
        assert drawn
        assert not any(isinstance(parse_call(call, tool, tool != "Calendar"), Malformed) for call in drawn)
        assert re.sub(r" \[[^\]]*\]", "", annotated) == text


def test_the_document_is_in_the_prompt() -> None:
    """One mistake seen elsewhere: a prompt that never shows the text."""
    template = load_prompt("QA")
    assert f"{template.prefix} THE TEXT{template.suffix}".endswith("\n\nInput: THE TEXT\nOutput:")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("Say [QA(x)].\n\nInput: {text}\nThen {text}\nOutput:", "exactly one"),
        ("Say [QA(x)].\n\nInput:\nOutput:", "exactly one"),
        ("Say [QA(x)].\n\nInput:{text}\nOutput:", "write 'Input: {text}'"),
        ("Say [QA(x)].\n\nInput: {text}", "write 'Input: {text}'"),
        ("Say something.\n\nInput: {text}\nOutput:", "of no other tool"),
        ("Say [QA(x)] or [MT(x)].\n\nInput: {text}\nOutput:", "of no other tool"),
        ("Say [Calculator(x)].\n\nInput: {text}\nOutput:", "of no other tool"),
    ],
)
def test_a_prompt_of_another_tool_or_without_its_slot_is_refused(
    tmp_path: Path, written: str, message: str
) -> None:
    (tmp_path / "qa.txt").write_text(written)
    with pytest.raises(PromptError, match=re.escape(message)):
        load_prompt("QA", tmp_path)


def test_a_missing_prompt_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"wikisearch\.txt"):
        load_prompt("WikiSearch", tmp_path)
