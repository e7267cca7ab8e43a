"""Completion: the script has every command and option, and a shell completes with it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.cli import main as cli
from pipeline.cli.commands import COMMANDS
from pipeline.cli.completion import SHELLS

pytestmark = pytest.mark.unit


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_is_completed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    assert all(f" {name}" in text for name in COMMANDS)
    option = "-l method.calculator.tau-s" if shell == "fish" else "--method.calculator.tau-s"
    assert option in text


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["anno"], ["annotate"]),
        (["annotate", "--model.d"], ["--model.device", "--model.dtype"]),
        (["annotate", "--recipe", ""], ["demo", "single_gpu", "paper"]),
        (["merge", "--tau"], ["--tau-f"]),
        (["completion", "z"], ["zsh"]),
    ],
)
def test_bash_completes(
    words: list[str], completed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if (bash := shutil.which("bash")) is None:
        pytest.skip("there is no bash")
    file = tmp_path / "completion.bash"
    file.write_text(script("bash", capsys))
    given = " ".join(f"'{word}'" for word in ["toolformer", *words])
    code = (
        f'source {file}; COMP_WORDS=({given}); COMP_CWORD={len(words)}; _toolformer; echo "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run([bash, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == completed
    assert not done.stderr
