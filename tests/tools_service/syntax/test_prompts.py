"""The prompts: that they are complete, and what a wrong one is told."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tools_service.contract.declarations import PACKAGED
from tools_service.syntax.calls import Malformed, parse_call
from tools_service.syntax.demonstrations import DemonstratedCall, Demonstration, Problem
from tools_service.syntax.prompts import (
    PROMPT_FOLDER,
    PromptError,
    demonstrations,
    load_prompt,
    prompt_problems,
)

pytestmark = pytest.mark.unit

DEMO_FOLDER = Path(__file__).parents[3] / "demo" / "prompts"
SLOT = "\n\nInput: {text}\nOutput:"


def pair(text: str, with_calls: str) -> str:
    return f"Ask.\nInput: {text}\nOutput: {with_calls}{SLOT}"


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


@pytest.mark.parametrize("tool", PACKAGED)
@pytest.mark.parametrize("folder", [PROMPT_FOLDER, DEMO_FOLDER])
def test_the_prompts_of_this_repository_are_used_as_they_are(tool: str, folder: Path) -> None:
    written = (folder / f"{tool.lower()}.txt").read_text(encoding="utf-8").rstrip()
    template = load_prompt(tool, folder)
    assert f"{template.prefix} {{text}}{template.suffix}" == written
    assert prompt_problems(written, tool, PACKAGED, takes_input=tool != "Calendar") == []
    assert len(demonstrations(written, tool)) == len(re.findall(r"^Output: ", written, re.MULTILINE))


def test_the_document_is_in_the_prompt() -> None:
    """One mistake seen elsewhere: a prompt that never shows the text."""
    template = load_prompt("QA")
    assert f"{template.prefix} THE TEXT{template.suffix}".endswith("\n\nInput: THE TEXT\nOutput:")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("", "line 1: no {text}; exactly one belongs into a prompt, in 'Input: {text}' at its end"),
        ("Say [QA(x)].\n\nInput:\nOutput:", "line 4: no {text}"),
        ("Say [QA(x)].\n\nInput: {Text}\nOutput:", "line 4: no {text}"),
        ("Say [QA(x)].\n\nInput: {text}\nThen {text}\nOutput:", "line 4: a second {text}"),
        ("Say [QA(x)].\n\nInput:{text}\nOutput:", "line 3: write 'Input: {text}', then 'Output:'"),
        ("Say [QA(x)].\n\n{text}\nOutput:", "line 3: write 'Input: {text}'"),
        ("Say [QA(x)].\n\nInput: {text}", "line 3: write 'Input: {text}', then 'Output:'"),
        (" {text}\nOutput:", "line 1: write 'Input: {text}'"),
        ("Say something." + SLOT, "line 1: no call of QA is shown; write one, [QA(…)]"),
        ("Say [qa(x)]." + SLOT, "line 1: no call of QA is shown"),
        ("Ask [QA(x)].\nInput: a b\nOutput: a b" + SLOT, "line 1: no call of QA is shown"),
        ("Say [QA(x)] or [MT(x)]." + SLOT, "line 1: a call of MT; a prompt shows calls of QA and of no"),
        ("Say\n[QA(x)],\n[Units(x)]." + SLOT, "line 3: a call of Units; a prompt shows calls of QA"),
        ("Say [Calculator(x)]." + SLOT, "line 1: a call of Calculator"),
        ("Ask.\n\nOutput: An [QA(x)] a." + SLOT, "line 3: 'Output:' without 'Input:' in front of it"),
        ("Ask.\n\nInput: It is a." + SLOT, "line 3: 'Input:' without 'Output:' behind it"),
        ("[QA(x)]\nInput: a\nInput: b\nOutput: b" + SLOT, "line 2: 'Input:' without 'Output:'"),
        (pair("a b", "a [QA(x) -> b] b"), "line 3: the call '[QA(x) -> b] b' has an arrow"),
        (pair("a b", "a [QA(x) b"), "line 3: the call '[QA(x) b' does not end with )]"),
        (pair("a b", "a [QA(x b] c"), "line 3: the call '[QA(x b] c' does not end with )]"),
        (pair("a b", "a [QA( )] b"), "line 3: the call '[QA( )] b' has no input"),
        (pair("a b", "a [QA([x)] b"), "line 3: the call '[QA([x)] b' has a bracket inside"),
        (pair("a b", "a [QA(\ufffd)] b"), "has a broken character"),
        (pair("a b", "a[QA(x)] b"), "line 3: the call '[QA(x)] b' needs a space in front of it"),
        (
            pair("a c", "a [QA(x)] b"),
            "line 3: without its calls this is not the text above it: 'b' instead of 'c'",
        ),
        (pair("a b c", "a [QA(x)] b"), "'its end' instead of ' c'"),
        (pair("a  b", "a [QA(x)] b"), "line 3: without its calls"),
        (pair("a b", "a [QA(x)] [Search(y)] b"), "'[Search(y)] b' instead of 'b'"),
        (pair("a b", "a [QA(x)] b").replace("Input: a", "Input:a"), "line 3: the texts behind"),
        (
            pair("a b", "[QA(x)] a b").replace("Output: [", "Output:["),
            "line 3: the texts behind 'Input:' and 'Output:' must begin with a space",
        ),
        ("\n".join(f"Input: a\nOutput: {letter} [QA(x)]" for letter in "bcde") + SLOT, "; and 1 more"),
    ],
)
def test_a_wrong_prompt_is_told_line_and_reason(tmp_path: Path, written: str, message: str) -> None:
    (tmp_path / "qa.txt").write_text(written)
    with pytest.raises(PromptError) as refused:
        load_prompt("QA", tmp_path, other_tools=["QA", "Units"])
    assert f"{tmp_path / 'qa.txt'}: line " in str(refused.value)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_problems_come_in_the_order_of_their_lines() -> None:
    template = "[MT(x)]\nInput: a\nOutput: b\nOutput: c\n[MT(y)]" + SLOT
    assert [problem.line for problem in prompt_problems(template, "QA")] == [1, 3, 4, 5]
    assert str(Problem(3, "wrong")) == "line 3: wrong"


def test_a_tool_without_an_input_is_checked_where_that_is_known() -> None:
    template = "Ask.\n\nInput: a b\nOutput: a [Calendar(x)] b" + SLOT
    assert prompt_problems(template, "Calendar") == []
    [problem] = prompt_problems(template, "Calendar", takes_input=False)
    assert problem.message == "the call '[Calendar(x)] b' has an input, but this tool takes none"
    assert prompt_problems(template.replace("(x)", "()"), "Calendar", takes_input=False) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Say [QA(x)].\nü\n".encode("latin-1"), "line 2: not UTF-8: invalid start byte; save it as UTF-8"),
        ("Say [QA(x)].".encode("utf-16"), "line 1: not UTF-8"),
        (b"x" * (2**20 + 1), "which is no prompt"),
    ],
)
def test_bytes_that_are_no_text(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "qa.txt").write_bytes(data)
    with pytest.raises(PromptError) as refused:
        load_prompt("QA", tmp_path)
    assert message in str(refused.value)
    assert "qa.txt" in str(refused.value)


def test_a_missing_prompt_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"wikisearch\.txt: No such file .*toolformer-tools prompt"):
        load_prompt("WikiSearch", tmp_path)
    with pytest.raises(PromptError, match="is not a file"):
        load_prompt("QA", file=tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PromptError, match="is not a file"):
        load_prompt("QA", file=tmp_path / "pipe")


def test_a_file_of_another_name_and_with_other_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(
        "\ufeffAsk.\r\n\r\nInput: a b\r\nOutput: a [QA(x)] b\r\n\r\nInput: {text}\r\nOutput:\r\n".encode()
    )
    template = load_prompt("QA", tmp_path / "nowhere", file)
    assert template.prefix == "Ask.\n\nInput: a b\nOutput: a [QA(x)] b\n\nInput:"
    assert template.suffix == "\nOutput:"


def test_prompts_of_other_forms_are_used(tmp_path: Path) -> None:
    """Without demonstrations, and with other labels: such files were always read."""
    for written in [
        "2 and 3 make [Calculator(2 + 3)] 5." + SLOT,
        "Text: 2 and 3: 5\nCalls: 2 and 3: [Calculator(2 + 3)] 5\n\nText: {text}\nCalls:",
        "[Calculator(2 + 3) -> 5] is a call.\n\n{text}".replace("{text}", "Add calls to: {text}\nNow:"),
    ]:
        (tmp_path / "calculator.txt").write_text(written)
        template = load_prompt("Calculator", tmp_path)
        assert f"{template.prefix} {{text}}{template.suffix}" == written


def test_labels_are_those_of_the_last_pair() -> None:
    template = "Text: a b\nCalls: a [QA(x)] c\n\nText: {text}\nCalls:"
    assert [problem.line for problem in prompt_problems(template, "QA")] == [2]
    [problem] = prompt_problems("Ask [QA(x)].\nText: a\n\nText: {text}\nCalls:", "QA")
    assert problem.message == "'Text:' without 'Calls:' behind it"


def test_demonstrations_have_the_places_of_their_calls() -> None:
    template = (
        "Ask [QA(question)].\n\nInput: Ann, born 1990.\n"
        "Output: [QA(Who?)] Ann, born [QA( When? )] [QA(Year?)] 1990.\n"
        "A remark.\n\nInput: Two\nlines\nOutput: Two\n [QA(What?)]lines\n\nInput: None.\nOutput: None."
    ) + SLOT
    assert demonstrations(template, "QA") == [
        Demonstration(
            4,
            "Ann, born 1990.",
            (DemonstratedCall("Who?", 0), DemonstratedCall("When?", 9), DemonstratedCall("Year?", 9)),
        ),
        Demonstration(9, "Two\nlines", (DemonstratedCall("What?", 4),)),
        Demonstration(13, "None.", ()),
    ]
