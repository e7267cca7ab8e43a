"""`prompt`: examples become a prompt file; every problem is a line, and nothing is overwritten."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from bench.fixtures.small_models import tokenizer
from tools_service.commands import main
from tools_service.contract.declarations import known_tools
from tools_service.syntax.prompts import load_prompt

pytestmark = pytest.mark.unit

MODULE = '''
import datetime
from typing import Literal

calls = []

def convert(amount: float, to: Literal["km", "ft"]) -> float:
    """Converts miles.

    Args:
        amount: the number of miles
    """
    calls.append((amount, to))
    return amount * {"km": 1.609344, "ft": 5280}[to]

def age(year: int, date: datetime.date | None = None) -> int:
    """Says how old somebody is."""
    return date.year - year

class Shout:
    """Says it louder.

    And louder.
    """

    def __call__(self, text: str) -> str:
        return text.upper()
'''
TOOLS = """
[tools.Units]
class = "prompted_tools:convert"
[tools.Age]
class = "prompted_tools:age"
dated = true
[tools.Shout]
class = "prompted_tools:Shout"
description = "Writes words in capital letters"
"""
EXAMPLES = """\
A marathon is 26.2 miles, or [Units(26.2, km) -> 42.2] 42.2 km, long.

From 1 mile up, [Units(1, ft)] 5,280 feet, it is cold.
{"text": "The 3 miles, [Units(3, km)] 4.8 km, are flat."}
Down at 2 miles, [Units(2, ft)] 10,560 feet, it is warm.
The last 5 miles are [Units(5, km)] 8 km of sand.
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with three tools and examples."""
    (tmp_path / "prompted_tools.py").write_text(MODULE)
    (tmp_path / "tools.toml").write_text(TOOLS)
    (tmp_path / "examples.txt").write_text(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "prompted_tools", raising=False)
    return tmp_path


def prompt(*arguments: str) -> int:
    return main(["prompt", *arguments, "--tools-file", "tools.toml"])


def test_a_prompt_is_drafted_written_and_loaded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prompt("Units", "--from", "examples.txt", "--output", "units.txt") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "examples.txt: line 1: note: Units(26.2, km) gives '42.1648', not '42.2'",
        "units.txt: 4 demonstrations (--model counts the tokens)",
    ]
    written = (folder / "units.txt").read_text()
    assert written.startswith("Copy the text and add calls to a tool")
    assert 'A call looks like "[Units(amount, to)]"' in written
    assert "Converts miles. In it, amount is the number of miles; to is one of km, ft." in written
    assert written.count("\nOutput: ") == 4
    assert "sand" not in written
    template = load_prompt("Units", file=folder / "units.txt", other_tools=known_tools())
    assert template.suffix == "\nOutput:"
    assert prompt("Units", "--check", "units.txt") == 0
    assert capsys.readouterr().out == "units.txt: 4 demonstrations (--model counts the tokens)\n"


def test_the_tool_is_really_asked(folder: Path) -> None:
    assert prompt("Units", "--from", "examples.txt", "--examples", "2") == 0
    calls = sys.modules["prompted_tools"].calls
    assert calls == [(26.2, "km"), (1, "ft"), (3, "km"), (2, "ft"), (5, "km")]


def test_examples_come_from_standard_input_and_the_prompt_goes_to_standard_output(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(EXAMPLES.encode())))
    assert prompt("Units", "--examples", "1") == 0
    out, err = capsys.readouterr()
    assert out.endswith(
        "Output: A marathon is 26.2 miles, or [Units(26.2, km)] 42.2 km, long.\n\nInput: {text}\nOutput:\n"
    )
    assert "standard input: line 1: note: " in err
    assert err.endswith("the prompt: 1 demonstration (--model counts the tokens)\n")


def test_tokens_are_those_of_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tokenizer("bytes")
    small.save_pretrained("model")
    (folder / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    assert prompt("Units", "--from", "examples.txt", "--output", "units.txt", "--model", "model") == 0
    template = load_prompt("Units", file=folder / "units.txt")
    tokens = len(small(template.prefix + " " + template.suffix, add_special_tokens=False).input_ids)
    assert f"units.txt: 4 demonstrations, {tokens:,} tokens of model\n" in capsys.readouterr().err


def test_a_class_and_the_description_of_its_declaration(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "shout.txt").write_text("She cried [Shout(come here)] COME HERE to them.")
    assert prompt("Shout", "--from", "shout.txt") == 0
    out = capsys.readouterr().out
    assert 'A call looks like "[Shout(text)]"' in out
    assert "Writes words in capital letters." in out
    (folder / "tools.toml").write_text(TOOLS.partition("description")[0])
    assert prompt("Shout", "--from", "shout.txt") == 0
    assert "Says it louder." in capsys.readouterr().out


def test_dates_of_examples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "age.txt").write_text('{"text": "Ann, born 1990, is [Age(1990)] 33.", "date": "2023-01-30"}')
    assert prompt("Age", "--from", "age.txt", "--output", "age_prompt.txt") == 0
    assert capsys.readouterr().err == "age_prompt.txt: 1 demonstration (--model counts the tokens)\n"
    # A prompt file has no dates: the tool must answer, but not with what the text says.
    assert prompt("Age", "--check", "age_prompt.txt") == 0
    assert "note" not in capsys.readouterr().out


WRONG = """\
A walk of [Units(five, km)] 8 km.
A walk of [Units(5, mm)] 8 km.
A walk of 8 km, [Units(5, km)] in all.
A walk of [Units(5, km)8 km.
A walk of 8 km.
A sum of [Calculator(3 + 5)] 8.
{"txt": "A walk of [Units(5, km)] 8 km."}
A walk of {text}, [Units(5, km)] 8 km.
"""


def test_every_problem_is_a_line_and_the_rest_is_used(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "wrong.txt").write_text(WRONG)
    assert prompt("Units", "--from", "wrong.txt", "--output", "units.txt") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.removeprefix("wrong.txt: ") for line in err.splitlines()] == [
        "line 1: Units(five, km) has no result: not a number: amount",
        "line 2: Units(5, mm) has no result: not one of the choices: to",
        "line 3: Units(5, km) stands after its result, '8.04672'; write it in front of that",
        "line 4: the call '[Units(5, km)8 km.' does not end with )]",
        "line 5: has no call of Units; write [Units(…)] in front of its result",
        "line 6: has a call of another tool, [Calculator(…)]; an example shows one tool",
        'line 7: an object needs a field "text" with the text of the example',
        "line 8: holds {text}, which only stands at the end of a prompt",
        "no example can be used, so there is no prompt",
    ]
    assert not (folder / "units.txt").exists()
    (folder / "wrong.txt").write_text(WRONG + EXAMPLES)
    assert prompt("Units", "--from", "wrong.txt", "--output", "units.txt") == 0
    assert (folder / "units.txt").read_text().count("\nOutput: ") == 4


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        (
            "Input: a\nOutput: b\n\nInput: {text}\nOutput:",
            "p.txt: line 2: without its calls this is not the text",
        ),
        (
            "Input: 8 m\nOutput: [Units(x)] 8 m\n\nInput: {text}\nOutput:",
            "p.txt: line 2: Units(x) has no result",
        ),
        (
            "Input: 8 a\nOutput: 8 [Units(5, km)] a\n\nInput: {text}\nOutput:",
            "p.txt: line 2: Units(5, km) stands after",
        ),
        ("[Units(5, km)]\nInput: {text}\nOutput: {text}", "p.txt: line 3: a second {text}"),
        ("Shout [Shout(x)], [Units(5, km)]\nInput: {text}\nOutput:", "p.txt: line 1: a call of Shout"),
        ("\ud800", "p.txt: line 1: not UTF-8"),
    ],
)
def test_a_wrong_prompt_file_has_code_1(
    folder: Path, capsys: pytest.CaptureFixture[str], written: str, problem: str
) -> None:
    (folder / "p.txt").write_bytes(written.encode("utf-8", "surrogatepass"))
    assert prompt("Units", "--check", "p.txt") == 1
    assert problem in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Nope"], "TOOL: no tool is called Nope"),
        (["Units", "--from", "nowhere.txt"], "--from 'nowhere.txt': cannot read it"),
        (["Units", "--from", "."], "--from '.': cannot read it"),
        (["Units", "--from", ""], "--from"),
        (["Units", "--from", "empty.txt"], "--from: there are no examples"),
        (["Units", "--from", "many.txt"], "--from: more than 1,000 lines"),
        (
            ["Units", "--from", "examples.txt", "--output", "examples.txt"],
            "--output examples.txt: is there already",
        ),
        (["Units", "--from", "examples.txt", "--output", "link.txt"], "--output link.txt: is there already"),
        (["Units", "--from", "examples.txt", "--output", "no/units.txt"], "there is no folder no"),
        (["Units", "--from", "examples.txt", "--output", ""], "--output"),
        (["Units", "--from", "examples.txt", "--examples", "0"], "--examples"),
        (["Units", "--from", "examples.txt", "--model", "./nowhere"], "--model './nowhere'"),
        (["Units", "--check", "nowhere.txt"], "cannot read nowhere.txt: No such file"),
        (
            ["Units", "--check", "examples.txt", "--from", "examples.txt"],
            "--check: a prompt file is only checked",
        ),
        (["Units", "--check", "examples.txt", "--output", "x.txt"], "--check: a prompt file is only checked"),
        (["QA", "--check", "examples.txt", "--wikisearch.index", "nowhere"], "wikisearch.source: QA"),
        (["Units", "--from", "examples.txt", "--output", "x" * 300], "File name too long"),
        (["Units", "--from", "x" * 300], "File name too long"),
        (["Units", "--check", "x" * 300], "File name too long"),
    ],
)
def test_wrong_usage_has_code_2_and_changes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (folder / "empty.txt").write_text(" \n\n")
    (folder / "many.txt").write_text("x [Units(1, km)] y\n" * 1_001)
    (folder / "link.txt").symlink_to("target.txt")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert prompt(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert (folder / "link.txt").readlink() == Path("target.txt")


def test_no_standard_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert prompt("Units") == 2
    assert "standard input is closed" in capsys.readouterr().err
