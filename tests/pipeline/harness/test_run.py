"""The command `harness`: tasks, the result file, and what it refuses before the model is loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'lm_eval>=0.4.13,<0.5'")

from lm_eval.tasks import TaskManager

from bench.fixtures.harness_tasks import NUMBER, ROLLING, write_task
from bench.fixtures.small_models import causal_lm, tokenizer
from pipeline.base.config import ModelConfig
from pipeline.base.harness_config import HarnessConfig
from pipeline.base.inference_config import GenerateConfig
from pipeline.cli import main as cli
from pipeline.harness.errors import HarnessError, HarnessRunError
from pipeline.harness.model import ToolformerLM
from pipeline.harness.run import run_tasks
from pipeline.storage.kinds import HARNESS
from tools_service.base.ownership import NotOwnError

pytestmark = pytest.mark.unit

PAGE = "The bakery sold 48 rolls on Monday and 67 on Tuesday, 115 in both days. "
QUESTIONS = [{"prompt": "48 and 67 make", "answers": ["115"]}, {"prompt": "27 and 4 make", "answers": ["31"]}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    causal_lm("llama", len(tokenizer("pieces")), positions=128).save_pretrained(folder)
    tokenizer("pieces").save_pretrained(folder)
    return folder


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_task(folder, "pages", ROLLING, [{"text": PAGE}, {"text": PAGE * 9}])
    write_task(folder, "sums", NUMBER, QUESTIONS)
    broken = {**NUMBER, "dataset_path": str(folder / "missing")}
    write_task(folder, "broken", broken, QUESTIONS)
    write_task(folder, "undefined", {**NUMBER, "doc_to_text": "{{prompt.nothing.at_all}}"}, QUESTIONS)
    shares = [{"parts": parts, "answers": ["1"]} for parts in (2, 0)]
    write_task(folder, "shares", {**NUMBER, "doc_to_text": "{{1 // parts}}"}, shares)
    return folder


def config(model: Path, output: Path, *tasks: str, **settings: object) -> HarnessConfig:
    lm = ModelConfig(path=str(model), dtype="float32", device="cpu")
    generation = GenerateConfig(model=lm, tools_off=("QA", "WikiSearch", "MT"))
    return HarnessConfig(generation=generation, tasks=tasks, output=output, **settings)  # type: ignore[arg-type]


def own_tasks(folder: Path) -> TaskManager:
    return TaskManager(include_path=folder, include_defaults=False)


def test_the_command_prints_the_table_and_writes_the_results(
    model: Path,
    tasks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The 14,000 tasks of the harness take seconds to list.
    monkeypatch.setattr("pipeline.harness.run.TaskManager", lambda include_path: own_tasks(include_path))
    output = tmp_path / "new" / "harness.json"
    options = ["--model", str(model), "--generation.model.dtype", "float32", "--include-path", str(tasks)]
    options += ["--no-calls", "--limit", "1", "--tasks", "pages", "sums", "--output", str(output)]
    assert cli.main(["harness", *options]) == 0
    printed = capsys.readouterr().out
    assert "|word_perplexity|" in printed
    assert "|exact_match" in printed
    assert printed.endswith(f"{output}\n")
    results = json.loads(output.read_text())
    assert HARNESS.is_marked(output)
    assert results["n-samples"]["sums"] == {"original": 2, "effective": 1}
    assert results["results"]["pages"]["word_perplexity,none"] > 1
    assert results["config"]["toolformer"]["generations"] == 1
    assert results["config"]["toolformer"]["config"]["calls"] is False
    assert "samples" not in results


def test_the_command_says_what_it_lost(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.harness.run.TaskManager", lambda include_path: own_tasks(include_path))
    write_task(tmp_path, "long", NUMBER, [{"prompt": PAGE * 9, "answers": ["1"]}, *QUESTIONS])
    options = ["--model", str(model), "--include-path", str(tmp_path), "--tasks", "long", "--no-calls"]
    assert cli.main(["harness", *options, "--output", str(tmp_path / "harness.json")]) == 0
    assert (
        "! 1 of 3 prompts were longer than the context and lost their beginning\n" in capsys.readouterr().out
    )


def test_only_an_output_of_its_kind_is_replaced(model: Path, tasks: Path, tmp_path: Path) -> None:
    output = tmp_path / "harness.json"
    settings = config(model, output, "sums", calls=False, log_samples=True)
    run = run_tasks(settings, own_tasks(tasks))
    assert len(run.generations) == 2
    assert len(json.loads(output.read_text())["samples"]["sums"]) == 2
    run_tasks(settings.model_copy(update={"log_samples": False}), own_tasks(tasks))
    assert "samples" not in json.loads(output.read_text())
    output.write_text('{"mine": 1}')
    with pytest.raises(NotOwnError, match="is not a result of harness"):
        run_tasks(settings, own_tasks(tasks))
    assert output.read_text() == '{"mine": 1}'


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "--tasks: name at least one"),
        (("pages", "no_such_task"), "the harness has no no_such_task; `lm_eval ls tasks`"),
        (("broken",), "--tasks: broken cannot be loaded"),
        (
            ("sums", "pages"),
            r"pages: asks for likelihoods, which are intractable .*--likelihoods-without-calls",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_model_is_loaded(
    names: tuple[str, ...], message: str, tasks: Path, tmp_path: Path
) -> None:
    settings = config(tmp_path / "no model", tmp_path / "harness.json", *names)
    with pytest.raises(HarnessError, match=message) as raised:
        run_tasks(settings, own_tasks(tasks))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "harness.json").exists()


def test_a_folder_of_tasks_must_be_there(tmp_path: Path) -> None:
    settings = config(tmp_path, tmp_path / "harness.json", "pages", include_path=tmp_path / "missing")
    with pytest.raises(HarnessError, match=r"--include-path: .*missing is not a folder"):
        run_tasks(settings)


def test_a_task_that_fails_is_named(model: Path, tasks: Path, tmp_path: Path) -> None:
    settings = config(model, tmp_path / "harness.json", "shares", calls=False)
    with pytest.raises(HarnessRunError, match=r"shares: the harness failed\. ZeroDivisionError"):
        run_tasks(settings, own_tasks(tasks))
    assert not (tmp_path / "harness.json").exists()


def test_likelihoods_can_be_had_without_calls_beside_generation_with_calls(
    model: Path, tasks: Path, tmp_path: Path
) -> None:
    settings = config(model, tmp_path / "harness.json", "sums", "pages", likelihoods_without_calls=True)
    mixed = run_tasks(settings, own_tasks(tasks)).results
    assert mixed["config"]["toolformer"]["calls"] is True
    plain = run_tasks(config(model, tmp_path / "plain.json", "pages", calls=False), own_tasks(tasks)).results
    assert mixed["results"]["pages"] == plain["results"]["pages"]


def test_without_the_harness_the_command_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval" or ".harness" in name]:
        if name.startswith(("lm_eval", "pipeline.harness")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert cli.main(["harness", "--model", "m", "--tasks", "wikitext"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install 'lm_eval>=0.4.13,<0.5'" in error


def test_the_model_keeps_its_registered_name() -> None:
    from lm_eval.api.registry import get_model

    assert get_model("toolformer") is ToolformerLM
