"""The chain of all steps: whatever is overridden, each step reads what the one before it wrote."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from threading import Barrier, Event

import pytest

from pipeline.cli import demo as module
from pipeline.cli.demo import chained, models_of, steps_of
from pipeline.cli.recipes import Recipe, demo, written_below
from pipeline.cli.steps import BegunStep, PipelineStep, StepCache
from pipeline.storage.manifest import MANIFEST

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


def pair(cache: StepCache, tmp_path: Path, run: Callable[[str], None]) -> list[BegunStep]:
    """The two fine-tunings, begun; `run` is called with the name of each."""
    group = next(
        group for group in module._groups(steps_of(two_rounds(tmp_path)), together=True) if group[1:]
    )
    assert [step.name for step in group] == ["finetune", "finetune on plain texts"]
    begun = [cache.begin(dataclasses.replace(step, run=partial(run, step.name))) for step in group]
    return [each for each in begun if each is not None]


def state_of(cache: StepCache) -> dict[str, str]:
    return {name: entry.state for name, entry in StepCache.open(cache.path).entries.items()}


def test_the_two_fine_tunings_run_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_room_for", lambda configs: nullcontext())
    cache, both = StepCache.open(tmp_path / "steps.json"), Barrier(2)
    module._run_group(pair(cache, tmp_path, lambda name: both.wait(60) and None), cache)
    assert state_of(cache) == {"finetune": "finished", "finetune on plain texts": "finished"}


def test_of_two_that_run_at_the_same_time_one_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has finished stays finished; the error comes at once, without the end of the other."""
    monkeypatch.setattr(module, "_room_for", lambda configs: nullcontext())
    cache, never = StepCache.open(tmp_path / "steps.json"), Event()

    def run(name: str) -> None:
        if name == "finetune":
            raise RuntimeError("broken")
        never.wait()

    with pytest.raises(RuntimeError, match="broken"):
        module._run_group(pair(cache, tmp_path, run), cache)
    never.set()
    assert state_of(cache) == {"finetune": "begun", "finetune on plain texts": "begun"}


def test_on_gpus_on_other_machines_and_with_large_models_the_steps_run_one_by_one(tmp_path: Path) -> None:
    recipe = chained(demo())
    assert all(len(group) == 1 for group in module._groups(steps_of(recipe), together=False))
    large = recipe.finetune.model.model_copy(update={"path": str(tmp_path)})
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(65 * 2**20)
    for change in ({"use_gpu": True}, {"workers": 1}, {"model": large}):
        changed = recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update=change)})
        assert all(len(group) == 1 for group in module._groups(steps_of(changed), together=True))


def two_rounds(tmp_path: Path) -> Recipe:
    return chained(written_below(demo(), tmp_path).model_copy(update={"rounds": 2}))


def test_the_steps_of_a_second_round_come_before_the_evaluation(tmp_path: Path) -> None:
    recipe = two_rounds(tmp_path)
    steps = steps_of(recipe)
    first = steps_of(recipe.model_copy(update={"rounds": 1}))
    assert [step.name for step in steps] == [
        *(step.name for step in first[:4]),
        *(f"{name}, round 2" for name in ("annotate", "merge", "finetune")),
        "evaluate",
    ]
    for step, alone in zip(steps[:4], first[:4], strict=True):
        assert (step.config, step.reads, step.output) == (alone.config, alone.reads, alone.output)
    annotate, merge, finetune = steps[4:7]
    assert str(tmp_path / "model") in annotate.reads
    assert set(merge.reads) == {
        tmp_path / "annotations" / MANIFEST,
        tmp_path / "round-2" / "annotations" / MANIFEST,
    }
    assert finetune.reads == (recipe.finetune.model.path, tmp_path / "round-2" / "augmented" / MANIFEST)
    assert tmp_path / "round-2" / "model" / MANIFEST in steps[-1].reads
    assert len({step.output for step in steps}) == len(steps)
    assert list(module._usual_s(chained(demo().model_copy(update={"rounds": 2})))) == [
        step.name for step in steps
    ]


def test_the_models_of_all_rounds_are_in_one_evaluation(tmp_path: Path) -> None:
    models = models_of(two_rounds(tmp_path))
    assert list(models) == ["base", "plain", "disabled", "toolformer", "round-2"]
    assert models["round-2"].generation.model.path == str(tmp_path / "round-2" / "model")
    assert models["round-2"].compare_with == "toolformer"
    assert models["round-2"].disabled_perplexity
    assert {evaluate.output for evaluate in models.values()} == {tmp_path / "evaluation.json"}


def test_finished_steps_of_both_rounds_are_skipped(tmp_path: Path) -> None:
    """A second round is added to a finished run without its first three steps running again."""
    ran: list[str] = []

    def steps(recipe: Recipe) -> list[PipelineStep]:
        def run(step: PipelineStep) -> None:
            ran.append(step.name)
            step.output.parent.mkdir(parents=True, exist_ok=True)
            step.output.touch() if step.output.suffix else step.output.mkdir(exist_ok=True)

        return [
            dataclasses.replace(step, run=partial(run, step), problem=lambda: None)
            for step in steps_of(recipe)
        ]

    def go(rounds: int) -> list[str]:
        ran.clear()
        cache = StepCache.open(tmp_path / "steps.json")
        for step in steps(two_rounds(tmp_path).model_copy(update={"rounds": rounds})):
            cache.run(step)
        return list(ran)

    assert go(1) == ["annotate", "merge", "finetune", "finetune on plain texts", "evaluate"]
    assert go(1) == []
    (tmp_path / "evaluation.json").write_text('{"models": {}}')  # by which it is known as our own
    assert go(2) == ["annotate, round 2", "merge, round 2", "finetune, round 2", "evaluate"]
    assert go(2) == []


def test_the_report_shows_the_outputs_of_both_rounds(tmp_path: Path) -> None:
    parts = module._parts(two_rounds(tmp_path))
    assert parts.annotations == [tmp_path / "annotations", tmp_path / "round-2" / "annotations"]
    assert parts.augmented == [tmp_path / "augmented", tmp_path / "round-2" / "augmented"]
    assert parts.models == [tmp_path / name for name in ("model", "model-plain", "round-2/model")]
