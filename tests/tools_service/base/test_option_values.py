"""Which words are values of an option with several values, and which are other arguments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import tyro

from tools_service.base.errors import ConfigurationError
from tools_service.base.option_fields import argument_fields
from tools_service.base.option_values import separate_values
from tools_service.base.settings import Text

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class WithPrompts:
    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    k: int = 0
    tools_off: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    source: tuple[Text, ...] = ()
    layout: tuple[Literal["qa", "math"], ...] = ()
    rows: dict[Text, Literal["base", "plain"]] | None = None


@dataclass(frozen=True)
class WithoutPrompts:
    corpus: tuple[Text, ...] = ()
    tau_f: dict[str, float] | None = None


def separated(arguments: object, *argv: str) -> list[str]:
    fields = argument_fields(arguments)
    return separate_values(argv, fields, {"QA": 1, "MT": 2}, {"stop": str.upper})


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--tools-off QA MT hello", "hello --tools-off QA MT"),
        ("--tools_off=QA MT hello --tools-off X", "hello --tools-off QA MT X"),
        ("--tools-off X hello", "hello --tools-off X"),
        ("--stop a b --k 1 --stop=c", "b --k 1 --stop A C"),
        ("--source nothere hello", "hello --source nothere"),
        ("--source a s3://b/c *.json hello", "hello --source a s3://b/c *.json"),
        ("--layout qa math hello", "hello --layout qa math"),
        ("--layout lama hello", "hello --layout lama"),
        ("--rows mine base theirs plain hello", "hello --rows mine base theirs plain"),
        ("--tools-off QA -- MT --k", "--tools-off QA -- MT --k"),
        ("hello --tools-off", "hello --tools-off"),
    ],
)
def test_a_prompt_behind_an_option_stays_a_prompt(argv: str, expected: str) -> None:
    assert separated(WithPrompts(), *argv.split()) == expected.split()


def test_files_that_exist_are_values(tmp_path: Path) -> None:
    file = str(tmp_path)
    assert separated(WithPrompts(), "--source", "a", file, "b") == ["b", "--source", "a", file]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--corpus a b --corpus c", "--corpus a b c"),
        ("--tau-f 1.0", "--tau-f all 1.0"),
        ("--tau-f=1.0", "--tau-f all 1.0"),
        ("--tau-f -0.5", "--tau-f all -0.5"),
        ("--tau-f 0.5 QA 1", "--tau-f all 0.5 QA 1"),
        ("--tau-f QA 1 --corpus a", "--tau-f QA 1 --corpus a"),
        ("--tau-f QA 1 --tau-f MT -2", "--tau-f QA 1 MT -2"),
    ],
)
def test_numbers_by_tool_and_options_given_again(argv: str, expected: str) -> None:
    assert separated(WithoutPrompts(), *argv.split()) == expected.split()


@pytest.mark.parametrize("argv", ["--tau-f", "--tau-f QA", "--tau-f QA high", "--tau-f QA 1 MT"])
def test_pairs_that_are_none_are_refused(argv: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^--tau-f: give a name and a number"):
        separated(WithoutPrompts(), *argv.split())


@pytest.mark.parametrize("argv", ["--rows mine", "--rows mine results.json", "--rows mine bas results.json"])
def test_a_row_that_is_none_is_refused_with_those_there_are(argv: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^--rows: give a name and one of base, plain"):
        separated(WithPrompts(), *argv.split())
