"""The recipe `demo` outside a checkout: one sentence instead of a failure somewhere in the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli import main as cli
from pipeline.cli.commands import COMMANDS
from pipeline.cli.demo_files import require_demo_files

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("argv", "missing"),
    [
        (["demo"], "demo/pages, demo/models/annotator, demo/prompts, demo/questions/calculator.jsonl"),
        (["annotate", "--recipe", "demo", "--corpus", "texts"], "demo/models/annotator, demo/prompts:"),
        (["plan", "--model", "my/model", "--corpus", "texts"], "demo/prompts:"),
        (["finetune"], "demo/models/annotator:"),
    ],
)
def test_missing_demo_files_are_named_with_a_command_that_works(
    argv: list[str],
    missing: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    message = capsys.readouterr().err
    assert f"python -m pipeline {argv[0]}: {missing}" in message
    assert "the recipe `demo` needs a checkout of the repository" in message
    _, _, command = message.strip().rpartition(": python -m pipeline ")
    name, *options = command.split()
    require_demo_files(cli.parse(name, options), "python -m pipeline")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "argv",
    [
        ["merge", "--annotations", "annotations", "--output", "augmented"],
        ["finetune", "--model", "my/model", "--data", "augmented"],
        ["generate", "--model", "my/model"],
        ["annotate", "--recipe", "paper", "--corpus", "demo/of/mine"],
    ],
)
def test_commands_that_need_no_file_of_the_demo_run_anywhere(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    require_demo_files(cli.parse(argv[0], argv[1:]), "python -m pipeline")


@pytest.mark.parametrize("name", COMMANDS)
def test_in_a_checkout_nothing_is_missing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    require_demo_files(cli.parse(name, []), "python -m pipeline")
