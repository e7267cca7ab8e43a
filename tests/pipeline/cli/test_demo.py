"""The chain of all steps: whatever is overridden, each step reads what the one before it wrote."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pipeline.cli import demo as module
from pipeline.cli.demo import chained, models_of, steps_of
from pipeline.cli.recipes import Recipe, demo

pytestmark = pytest.mark.unit


@pytest.fixture
def recipe() -> Recipe:
    """The demo with outputs of its own for two steps."""
    recipe = demo()
    annotate = recipe.annotate.model_copy(update={"output": Path("elsewhere/rows")})
    finetune = recipe.finetune.model_copy(update={"output": Path("elsewhere/tuned")})
    return chained(recipe.model_copy(update={"annotate": annotate, "finetune": finetune}))


def test_overridden_outputs_are_what_the_next_step_reads(recipe: Recipe) -> None:
    assert recipe.merge.annotations == (Path("elsewhere/rows"),)
    assert recipe.finetune.data == recipe.merge.output
    assert recipe.evaluate.generation.model.path == "elsewhere/tuned"


def test_the_four_models_are_the_papers(recipe: Recipe) -> None:
    models = models_of(recipe)
    paths = {label: evaluate.generation.model.path for label, evaluate in models.items()}
    assert paths == {
        "base": recipe.finetune.model.path,
        "plain": "elsewhere/tuned-plain",
        "disabled": "elsewhere/tuned",
        "toolformer": "elsewhere/tuned",
    }
    assert [label for label, evaluate in models.items() if evaluate.generation.disabled] == ["disabled"]
    like_disabled = [label for label, evaluate in models.items() if evaluate.disabled_perplexity]
    assert like_disabled == ["base", "plain"]
    assert {evaluate.benchmarks for evaluate in models.values()} == {recipe.evaluate.benchmarks}
    assert {evaluate.output for evaluate in models.values()} == {recipe.evaluate.output}


def test_the_baseline_differs_from_toolformer_in_the_calls_alone(recipe: Recipe) -> None:
    with_calls, without = (step.config for step in steps_of(recipe) if step.name.startswith("finetune"))
    different = {
        name: (value, getattr(without, name)) for name, value in with_calls if getattr(without, name) != value
    }
    assert different == {
        "column": ("text", "plain"),
        "output": (Path("elsewhere/tuned"), Path("elsewhere/tuned-plain")),
    }


def test_the_steps_leave_what_the_demo_promises() -> None:
    outputs = [step.output for step in steps_of(chained(demo()))]
    names = ("annotations", "augmented", "model", "model-plain", "evaluation.json")
    assert outputs == [Path("runs/demo") / name for name in names]


def test_only_the_unchanged_demo_has_known_durations(recipe: Recipe) -> None:
    unchanged = chained(demo())
    assert list(module._usual_s(unchanged)) == [step.name for step in steps_of(unchanged)]
    assert not module._usual_s(recipe)


def test_the_command_to_try_the_model_names_it_only_if_it_must(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/toolformer", "demo"])
    assert module._generate_command(chained(demo()), "demo") == "toolformer generate --recipe demo"
    command = module._generate_command(recipe, "demo")
    assert command == "toolformer generate --recipe demo --model elsewhere/tuned"
    monkeypatch.setattr(sys, "argv", ["pipeline/__main__.py", "demo"])
    monkeypatch.setattr(sys, "executable", "/x/bin/python")
    monkeypatch.setenv("PATH", "")
    command = module._generate_command(recipe, "demo").split()[0]  # an environment that is not active
    assert Path(command).resolve() == Path("/x/bin/python")


def test_a_failure_names_the_log(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(config: object, recipe: Recipe) -> None:
        os.write(1, b"noise\n")
        raise RuntimeError("broken")

    monkeypatch.setattr(module, "_run", fail)
    monkeypatch.setattr(module, "_share", lambda config: 0.0)
    evaluate = recipe.evaluate.model_copy(update={"output": tmp_path / "evaluation.json"})
    annotate = recipe.annotate.model_copy(update={"output": tmp_path / "annotations"})
    with pytest.raises(RuntimeError, match="broken"):
        module.demo(recipe.model_copy(update={"annotate": annotate, "evaluate": evaluate}))
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "step 1 of 5, annotate: " in printed.err
    assert f"The log of the steps: {tmp_path / 'demo.log'}" in printed.err
    assert (tmp_path / "demo.log").read_text() == "noise\n"
