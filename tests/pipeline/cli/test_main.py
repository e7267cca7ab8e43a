"""The command line: what becomes of arguments, what help shows, which code a run exits with."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from pipeline.cli import main as cli
from pipeline.cli.arguments import Arguments
from pipeline.cli.commands import COMMANDS
from pipeline.cli.recipes import RECIPES, RecipeName
from tools_service.base.errors import ConfigurationError, ToolformerError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("name", "recipe"),
    [*((name, "paper") for name in COMMANDS), ("demo", "demo"), ("annotate", "single_gpu")],
)
def test_without_options_a_command_is_the_recipes_step(name: str, recipe: RecipeName) -> None:
    arguments = cli.parse(name, ["--recipe", recipe])
    assert arguments.recipe == recipe
    assert arguments.config == COMMANDS[name].config(RECIPES[recipe]())


def test_a_nested_field_is_overridden_by_its_name_and_the_rest_stays_the_recipes() -> None:
    config = cli.parse("annotate", ["--recipe=paper", "--method.calculator.k", "5"]).config
    paper = RECIPES["paper"]().annotate
    assert config.method.calculator == paper.method.calculator.model_copy(update={"k": 5})
    assert config.model_copy(update={"method": paper.method}) == paper


@pytest.mark.parametrize(
    "argv",
    [
        ["--corpus", "a.json.gz", "shards/", "s3://b/*.parquet"],
        ["--corpus=a.json.gz", "shards/", "s3://b/*.parquet"],
    ],
)
def test_corpus_is_short_for_its_paths(argv: list[str]) -> None:
    config = cli.parse("annotate", [*argv, "--model", "/models/gpt-j"]).config
    assert config.corpus.paths == ("a.json.gz", "shards/", "s3://b/*.parquet")
    assert config.model.path == "/models/gpt-j"


def test_thresholds_by_tool() -> None:
    config = cli.parse("merge", ["--tau-f", "Calculator", "1.0", "QA", "0.5"]).config
    assert config.tau_f == {"Calculator": 1.0, "QA": 0.5}


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["annotate", "--metod.seed", "1"], "--metod.seed"),
        (["annotate", "--recipe", "laptop"], "laptop"),
        (["finetune", "--zero-stage", "4"], "4"),
        (["merge", "stray"], "stray"),
        (["generate", "--kk", "3"], "Unrecognized options: --kk, 3; did you mean --k?"),
        (["generate", "--k", "abc"], "--k: invalid literal for int() with base 10: 'abc'"),
        (["generate", "--k"], "'--k'"),
        (["table", "x.json", "--format", "pdf"], "('markdown', 'latex', 'csv')"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_names_what_is_wrong_in_one_line(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert named in said
    assert said.count("\n") == 1


def test_an_unknown_tool_is_refused_with_the_names_of_those_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["annotate", "--tools", "Abacus"]) == 2
    assert "no tool is called Abacus; there are QA, " in capsys.readouterr().err


def test_no_or_an_unknown_command_exits_with_2_and_lists_the_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([]) == 2
    assert cli.main(["anotate"]) == 2
    captured = capsys.readouterr()
    assert "'anotate'" in captured.err
    assert all(name in captured.err and name in captured.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_examples_that_parse_and_the_recipes_defaults(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--recipe", "single_gpu", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "runs/single_gpu" in shown
    for example in COMMANDS[name].examples:
        assert f"python -m pipeline {name} {example}".rstrip() in shown
        cli.parse(name, shlex.split(example))


def test_the_installed_command_takes_its_own_arguments_and_shows_its_own_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/venv/bin/toolformer", "anotate"])
    assert cli.main() == 2
    assert "toolformer: unknown command 'anotate'" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["/venv/bin/toolformer", "merge", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    shown = capsys.readouterr().out
    assert "usage: toolformer merge" in shown
    assert "python -m pipeline" not in shown


def test_help_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys\n"
        "from pipeline.cli.main import main\n"
        "try: main(['annotate', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'ray', 'transformers', 'deepspeed') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.endswith("[]\n")


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (ToolformerError("shard-3.json.gz, line 7: …"), 1, "shard-3.json.gz, line 7: …"),
        (ConfigurationError("tools.wikisearch.source: give one"), 2, "tools.wikisearch.source: give one"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_failures_are_one_message_and_a_code(
    raised: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(arguments: Arguments[Any]) -> None:
        raise raised

    monkeypatch.setitem(COMMANDS, "plan", replace(COMMANDS["plan"], run=fails))
    assert cli.main(["plan"]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(arguments: Arguments[Any]) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(COMMANDS, "plan", replace(COMMANDS["plan"], run=fails))
    with pytest.raises(ZeroDivisionError):
        cli.main(["plan"])
