"""The prompts of `generate`: where they come from, and how they stay apart from the values of options."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from pipeline.cli import main as cli
from pipeline.cli.arguments import GenerateArguments
from pipeline.cli.generating.prompts import prompts_of
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit


def parse(*argv: str) -> GenerateArguments:
    arguments = cli.parse("generate", argv)
    assert isinstance(arguments, GenerateArguments)
    return arguments


def test_prompts_come_from_arguments_a_file_or_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\ntwo é\n", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"three\n")))
    assert prompts_of(parse("a b", "c").prompts, None) == ["a b", "c"]
    assert prompts_of((), parse("--file", str(file)).file) == ["one", "two é"]
    assert prompts_of((), None) == ["three"]


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe\xff"])
def test_a_prompt_file_without_a_prompt_is_refused_by_name(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"prompts\.txt"):
        prompts_of((), file)
    with pytest.raises(ConfigurationError, match="not both"):
        prompts_of(["one"], file)


def test_only_a_line_feed_ends_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = ["a\u2028b", "a\u2029b", "a\x0bb", "a\x0cb", "a\x85b", "a\x1cb", "a\x1db", "a\x1eb", "a\rb", "a\tb"]
    content = ("\ufeff" + "\r\n".join(odd) + "\n\n \n").encode()
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    assert prompts_of((), file) == odd
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert prompts_of((), None) == odd


@pytest.mark.parametrize("content", [b"\xff\n", b"", b"\n\n", b"a\n\xc3\n"])
def test_standard_input_without_a_prompt_or_not_in_utf8_is_refused(
    content: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert cli.main(["generate", "--model", "gpt2"]) == 2
    error = capsys.readouterr().err
    assert "standard input" in error
    assert error.count("\n") == 1


def test_a_folder_is_no_prompt_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Is a directory"):
        prompts_of((), tmp_path)


@pytest.mark.parametrize(
    "argv",
    [
        ["--tools-off", "QA", "MT", "a prompt", "another"],
        ["--tools-off=QA", "MT", "a prompt", "another"],
        ["--tools_off", "QA", "a prompt", "another", "--tools-off", "MT"],
        ["a prompt", "another", "--tools-off", "QA", "MT"],
    ],
)
def test_a_prompt_behind_tools_off_is_a_prompt(argv: list[str]) -> None:
    arguments = parse(*argv)
    assert arguments.prompts == ("a prompt", "another")
    assert arguments.config.tools_off == ("QA", "MT")


def test_tools_off_takes_one_value_that_names_no_tool(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "--tools-off", "Abacus", "a prompt"]) == 2
    assert "no tool is called Abacus; there are QA, " in capsys.readouterr().err


def test_tools_of_a_tools_file_can_be_switched_off(tmp_path: Path) -> None:
    file = tmp_path / "tools.toml"
    file.write_text('[tools.Units]\nclass = "tools_service.tools.calculator:Calculator"\nprompt = "u.txt"\n')
    (tmp_path / "u.txt").write_text("Your task …\nInput: {text}\nOutput:")
    arguments = parse("--tools-file", str(file), "--tools-off", "QA", "Units", "a prompt")
    assert arguments.prompts == ("a prompt",)
    assert arguments.config.tools_off == ("QA", "Units")


@pytest.mark.parametrize(
    ("argv", "stop"),
    [
        (["--stop", r"\n", "a prompt"], ("\n",)),
        (["--stop", "\n", "a prompt"], ("\n",)),
        (["--stop", " ", "a prompt"], (" ",)),
        (["--stop", r"\n\n", "a prompt", "--stop=Q:"], ("\n\n", "Q:")),
        (["a prompt", "--stop", r"a\tb\\n"], ("a\tb\\n",)),
        (["a prompt"], ()),
    ],
)
def test_stop_takes_one_string_with_line_breaks(argv: list[str], stop: tuple[str, ...]) -> None:
    arguments = parse(*argv)
    assert arguments.prompts == ("a prompt",)
    assert arguments.config.stop == stop


@pytest.mark.parametrize("argv", [["--stop", ""], ["--stop="]])
def test_an_empty_stop_string_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "a prompt", *argv]) == 2
    error = capsys.readouterr().err
    assert "--stop = ''" in error
    assert error.count("\n") == 1
