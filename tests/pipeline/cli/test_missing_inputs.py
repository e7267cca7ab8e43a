"""An input that another command makes, and that is missing, names the command that makes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli import main as cli
from pipeline.cli.missing_inputs import require_inputs
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit

PAPER = ("--recipe", "paper")
MODEL = "'runs/paper/model': there is no such model yet; `finetune --recipe paper` makes it"


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(command: str, *options: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        require_inputs(cli.parse(command, options))
    return str(caught.value)


@pytest.mark.parametrize("command", ["generate", "serve", "evaluate", "harness", "sweep"])
def test_a_fine_tuned_model_that_is_missing(command: str) -> None:
    assert MODEL in refused(command, *PAPER)


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("generate", ["--model", "runs/mine"], "`finetune --recipe demo --output runs/mine` makes it"),
        ("score", ["--model", "runs/demo/model", "x.jsonl"], "`finetune --recipe demo` makes it"),
        ("scaling", ["--models", "a=runs/a/model"], "--models a 'runs/a/model': there is no such model yet"),
        ("evaluate", ["--models", "b=gpt2,disabled", "t=runs/demo/model"], "--models t 'runs/demo/model'"),
        ("merge", PAPER, "annotations 'runs/paper/annotations': there is no such folder yet; `annotate --re"),
        ("thresholds", PAPER, "`annotate --recipe paper` makes it"),
        (
            "finetune",
            PAPER,
            "data 'runs/paper/augmented': there is no such folder yet; `merge --recipe paper",
        ),
        ("export", ["x/c"], "data 'x/c': there is no such folder yet; `merge --recipe demo --output x/c` "),
        (
            "table",
            [],
            "evaluations 'runs/demo/evaluation.json': there is no such file yet; `evaluate --recipe",
        ),
    ],
)
def test_what_is_missing_and_the_command_that_makes_it(command: str, options: list[str], says: str) -> None:
    assert says in refused(command, *options)


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        (
            "merge",
            [],
            "'runs/mine/annotations': there is no such folder yet; `annotate --config run.yaml` makes",
        ),
        ("finetune", [], "`merge --config run.yaml` makes it"),
        ("finetune", ["--data", "c"], "`merge --config run.yaml --output c` makes it"),
        ("generate", [], "`finetune --config run.yaml` makes it"),
        ("generate", ["--recipe", "paper"], "`finetune --config run.yaml --recipe paper` makes it"),
    ],
)
def test_a_run_file_is_named_in_the_command(
    command: str, options: list[str], says: str, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text("recipe: demo\noutput: runs/mine\n", encoding="utf-8")
    assert says in refused(command, "--config", "run.yaml", *options)


def test_the_outputs_of_other_runs_are_named(tmp_path: Path) -> None:
    (tmp_path / "runs" / "demo-mine" / "annotations").mkdir(parents=True)
    assert refused("merge").endswith("; there is runs/demo-mine/annotations, if you mean that")


def test_what_exists_or_is_not_made_here_is_left_to_the_command(tmp_path: Path) -> None:
    (tmp_path / "runs" / "demo" / "model").mkdir(parents=True)
    require_inputs(cli.parse("generate", []))
    require_inputs(cli.parse("annotate", []))
    require_inputs(cli.parse("generate", ["--model", "openai-community/gpt2"]))
    require_inputs(cli.parse("merge", ["--annotations", "slices/*", "--output", "c"]))
    require_inputs(cli.parse("demo", []))
