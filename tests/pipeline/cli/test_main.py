"""The command line: what becomes of arguments, what help shows, which code a run exits with."""

from __future__ import annotations

import logging
import re
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
from tools_service.base.help_text import option_name
from tools_service.base.option_fields import argument_fields, nested_fields, option_names
from tools_service.base.version import __version__

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
        (["generate", "--kk", "3"], "unknown option --kk; did you mean --k?"),
        (["annotate", "--tau-s", "1"], "did you mean --method.calculator.tau-s"),
        (["generate", "--k", "abc"], "--k: 'abc' is not a whole number"),
        (["generate", "--temperature", "warm"], "--temperature: 'warm' is not a number"),
        (["generate", "--k"], "--k: the value is missing"),
        (["table", "x.json", "--format", "pdf"], "--format: 'pdf' is none of markdown, latex, csv"),
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


def test_without_a_command_the_overview_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    overview = capsys.readouterr().out
    assert all(f"  {name} " in overview for name in COMMANDS)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["anotate"], "unknown command 'anotate'; did you mean annotate?"),
        (["DEMO"], "did you mean demo?"),
        (["zzz"], "unknown command 'zzz' (--help lists the commands)"),
        (["--recipe", "demo"], "--recipe stands before the command"),
    ],
)
def test_an_unknown_command_is_one_line_with_the_one_that_was_meant(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"toolformer {__version__}\n"


def shown_help(name: str, option: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--recipe", "single_gpu", option])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_one_screen_with_the_recipes_defaults(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = shown_help(name, "--help", capsys)
    assert len(shown.splitlines()) <= 60
    entries = re.findall(r"^  (--\S+|[A-Z]+)", shown, flags=re.MULTILINE)
    assert [entry.replace("[no-]", "") for entry in entries] == [
        "--recipe",
        *COMMANDS[name].main.split(),
        "--config",
        "--dry-run",
    ]
    # The report's output depends on the folder; staged models are for all runs.
    if "--output" in entries and name not in ("report", "fetch"):
        assert "runs/single_gpu" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_all_options_are_in_the_whole_help_once(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = shown_help(name, "--help-all", capsys)
    command = COMMANDS[name]
    arguments = command.arguments(recipe="single_gpu", config=command.config(RECIPES["single_gpu"]()))
    listed = re.findall(r"^  (?:--\S+, )?(--\S+|[A-Z_]+)", shown, flags=re.MULTILINE)
    listed = [entry.replace("[no-]", "") for entry in listed]
    fields = [field for field in nested_fields(argument_fields(arguments)) if field.is_option]
    assert sorted(listed) == sorted({option_name(field) for field in fields})
    assert len(fields) > 5
    for option in option_names(arguments):  # every option that the parser takes is one of them
        assert option in {f"--{field.name.replace('_', '-')}" for field in fields}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_help_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = shown_help(name, "--help-all", capsys)
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


def test_warnings_name_options_as_errors_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: object) -> None:
        for package in ("pipeline.annotation.run", "another"):
            logging.getLogger(package).warning("waiting: lower ray.cpus_per_actor, or %s", "ray.actors")

    monkeypatch.setitem(COMMANDS, "annotate", replace(COMMANDS["annotate"], run=run))
    assert cli.main(["annotate"]) == 0
    own, others = capsys.readouterr().err.splitlines()
    assert own.endswith("waiting: lower --ray.cpus-per-actor, or --ray.actors")
    assert others.endswith("waiting: lower ray.cpus_per_actor, or ray.actors")


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(arguments: Arguments[Any]) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(COMMANDS, "plan", replace(COMMANDS["plan"], run=fails))
    with pytest.raises(ZeroDivisionError):
        cli.main(["plan"])


@pytest.mark.parametrize(
    ("command", "said", "shown"),
    [
        ("finetune", "lower --workers (wait_s waits)", "lower --workers (--wait-s waits)"),
        ("demo", "lower --workers (wait_s waits)", "lower --finetune.workers (--finetune.wait-s waits)"),
        ("demo", "lower --output", "lower --output"),  # which several steps have
        ("annotate", "fetch --revision", "fetch --revision"),  # another command's
    ],
)
def test_a_command_of_several_steps_names_the_steps_option(command: str, said: str, shown: str) -> None:
    assert cli._as_options(said, command) == shown
