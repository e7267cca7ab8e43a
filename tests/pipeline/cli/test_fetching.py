"""The command `fetch`: its table, and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.fixtures.small_models import causal_lm
from pipeline.cli.main import main
from tests.pipeline.fetching.local_hub import pickled
from tests.pipeline.scripted import tokenizer
from tools_service.base.staged_models import read_staged

pytestmark = pytest.mark.unit


def test_a_dry_run_prints_the_table_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tokenizer("bytes")
    pickled(tmp_path / "gptj", causal_lm("gptj", len(words)), words)
    capsys.readouterr()
    command = ["fetch", "--model", str(tmp_path / "gptj"), "--output", str(tmp_path / "out")]
    assert main([*command, "--dry-run"]) == 0
    heading, row, sums = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[0] == "model"
    assert row.startswith(f"{tmp_path / 'gptj'}  models  folder, pickled: is converted  -  ")
    assert sums.startswith("to download 0.0 kB; at most ")
    assert not (tmp_path / "out").exists()

    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path / 'gptj'}: {tmp_path / 'out/gptj'}"
    assert read_staged(tmp_path / "out/gptj") is not None


def test_a_model_that_cannot_be_had_is_a_mistake_of_the_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    assert main(["fetch", "nobody/nothing"]) == 2
    assert "nobody/nothing: it is not staged, and HF_HUB_OFFLINE forbids" in capsys.readouterr().err
    assert main(["fetch", "--recipe", "paper", "--revision", "v1"]) == 2
    assert "--revision: name the one model that it is of" in capsys.readouterr().err
