"""The commands of the analyses: labels, refusals, and what is printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.inference_config import EvaluateConfig
from pipeline.cli.analysing import scaling_configs, sweep_configs
from pipeline.cli.main import main, parse
from pipeline.evaluation.results import Evaluation
from tests.pipeline.analysis.results import model
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit

CONFIG = EvaluateConfig()


def settings(configs: dict[str, EvaluateConfig]) -> dict[str, tuple[str, int, bool]]:
    return {
        label: (config.generation.model.path, config.generation.k, config.generation.disabled)
        for label, config in configs.items()
    }


def test_a_sweep_evaluates_each_k_once() -> None:
    arguments = parse("sweep", ["--model", "m", "--k", "3", "0", "3", "--disabled"])
    configs = sweep_configs(arguments.config, arguments.k, disabled=arguments.disabled, label=None)
    assert settings(configs) == {"k3": ("m", 3, False), "k0": ("m", 0, False), "disabled": ("m", 10, True)}
    assert list(sweep_configs(CONFIG, [1], disabled=True, label="a")) == ["a-k1", "a-disabled"]
    assert parse("sweep", []).k == (0, 1, 3, 10)
    with pytest.raises(ConfigurationError, match="k = -1: "):
        sweep_configs(CONFIG, [-1], disabled=False, label=None)
    with pytest.raises(ConfigurationError, match="k: give one or more"):
        sweep_configs(CONFIG, [], disabled=False, label=None)


def test_scaling_evaluates_each_model_with_and_without_calls() -> None:
    configs = scaling_configs(CONFIG, ["s=runs/s", "l=runs/l", "gpt2=g/gpt2,disabled"])
    assert settings(configs) == {
        "s": ("runs/s", 10, False),
        "s-disabled": ("runs/s", 10, True),
        "l": ("runs/l", 10, False),
        "l-disabled": ("runs/l", 10, True),
        "gpt2": ("g/gpt2", 10, True),
    }


@pytest.mark.parametrize(
    ("models", "problem"),
    [
        ([], "--models: name one or more"),
        (["runs/s"], "--models runs/s: use LABEL=PATH"),
        (["s="], "--models s=: use LABEL=PATH"),
        (["=runs/s"], "use LABEL=PATH"),
        (["s=a", "s=b"], "the label s is given twice"),
        (["s=a", "s-disabled=b"], "two results with the label s-disabled"),
    ],
)
def test_models_that_cannot_be_used(models: list[str], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        scaling_configs(CONFIG, models)


def test_tables_of_stored_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evaluation.json"
    models = {"a_b": model("m", nq=0.5), "off": model("m", disabled=True, nq=0.25)}
    path.write_text(Evaluation(models=models).model_dump_json())
    assert main(["table", str(path), "--rows", "off", "disabled", "--no-paper"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if "NQ" in line or "50.0" in line] == [
        "| Model | WebQS | NQ | TriviaQA |",
        r"| a\_b | – | **50.0** | – |",
    ]
    assert "| Toolformer (disabled) (off) | – | 25.0 | – |" in out
    assert main(["table", str(path), "--layout", "decoding", "scaling", "--format", "csv"]) == 0
    assert capsys.readouterr().out == (
        "Model,k,source,All,AC,NC,Calls\noff,disabled,measured,25,,,0\na_b,10,measured,50,,,0\n"
        "\nModel,source,Parameters,NQ with calls,NQ without\na_b,measured,,50,25\n"
    )
    assert main(["table", str(path), "--layout", "lama", "--format", "latex"]) == 0
    assert capsys.readouterr().out.startswith("% Needs \\usepackage{booktabs}.\n\\begin{table}\n")


@pytest.mark.parametrize(
    "argv",
    [
        ["table", "gone.json"],
        ["table", "gone.json", "--layout", "nothing"],
        ["thresholds", "--annotations", "gone"],
        ["scaling"],
        ["sweep", "--k", "-1"],
    ],
)
def test_refusals_are_one_message(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").symlink_to(Path(__file__).parents[3] / "demo")
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
