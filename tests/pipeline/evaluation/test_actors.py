"""Evaluation on a real cluster: the results of one process, and a question that kills its actor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bench.fixtures import small_evaluation
from pipeline.base.config import ModelConfig
from pipeline.base.inference_config import ActorsConfig, EvaluateConfig, GenerateConfig
from pipeline.evaluation.actors import ActorError, EvaluationActor
from pipeline.evaluation.ray_executor import RayExecutor
from pipeline.evaluation.results import Evaluation
from pipeline.evaluation.run import evaluate
from pipeline.evaluation.tasks import Chunk, Task

pytestmark = pytest.mark.ray


class Mortal(EvaluationActor):
    """Dies with the question called `deadly`, as a process without memory does."""

    def run(self, task: Task) -> Any:
        if isinstance(task, Chunk) and any(question.id == "deadly" for question in task.questions):
            os._exit(1)
        return super().run(task)


class Stillborn(EvaluationActor):
    """Dies while it loads the model."""

    def use(self, *_: Any) -> None:
        os._exit(1)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    folder = tmp_path_factory.mktemp("world")
    small_evaluation.write_world(folder, 8)
    sums = folder / "sums.jsonl"
    sums.write_text(sums.read_text().replace('"id": "4"', '"id": "deadly"'))
    model = ModelConfig(path=str(folder / "model"), dtype="float32", device="cpu")
    return EvaluateConfig(
        generation=GenerateConfig(
            model=model, tools_off=small_evaluation.TOOLS_OFF, max_new_tokens=12, date="2023-01-30"
        ),
        benchmarks=(sums, folder / "more.jsonl"),
        perplexity=(str(folder / "pages.jsonl"),),
        ray=ActorsConfig(actors=0, gpus_per_actor=0),
    )


def evaluated(config: EvaluateConfig, output: Path, actors: int) -> Evaluation:
    """The results of two labels."""
    config = with_actors(config, output, actors)
    off = config.generation.model_copy(update={"disabled": True})
    return evaluate({"on": config, "off": config.model_copy(update={"generation": off})})


def with_actors(config: EvaluateConfig, output: Path, actors: int) -> EvaluateConfig:
    ray = config.ray.model_copy(update={"actors": actors})
    return config.model_copy(update={"output": output, "ray": ray})


@pytest.mark.usefixtures("ray_cluster")
def test_actors_give_the_results_of_one_process(config: EvaluateConfig, tmp_path: Path) -> None:
    here = evaluated(config, tmp_path / "here.json", 0)
    assert 0 < here.models["on"].benchmarks["sums"].calls < 8
    assert here.models["off"].perplexity is not None
    there = evaluated(config, tmp_path / "there.json", 2)
    assert there.models["off"].perplexity == pytest.approx(here.models["off"].perplexity)
    for label in ("on", "off"):
        assert there.models[label].benchmarks == here.models[label].benchmarks
        files = [tmp_path / f"{name}.{label}.parquet" for name in ("here", "there")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.usefixtures("ray_cluster")
def test_a_question_that_kills_its_actor_costs_itself(
    config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(RayExecutor.__init__, "__defaults__", (Mortal,))
        patch.setattr("pipeline.evaluation.actors.MAX_CRASHES", 1)  # each takes a new actor
        found = evaluate({"on": with_actors(config, tmp_path / "e.json", 1)}).models["on"].benchmarks
    assert found["sums"].not_asked == {"actor_died": 1}
    assert found["more"].not_asked == {}
    whole = evaluate({"on": with_actors(config, tmp_path / "e.json", 0)}).models["on"].benchmarks["sums"]
    assert whole.not_asked == {}  # asked again, and only that one
    assert found["sums"].calls in (whole.calls, whole.calls - 1)


@pytest.mark.usefixtures("ray_cluster")
def test_actors_that_never_start_end_the_run(
    config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RayExecutor.__init__, "__defaults__", (Stillborn,))
    monkeypatch.setattr("pipeline.evaluation.actors._MAX_STARTS", 1)
    generation = config.generation.model_copy(update={"disabled": True})
    disabled = config.model_copy(update={"generation": generation})
    with pytest.raises(ActorError, match="died 1 times \\(loading the model\\): too little memory"):
        evaluate({"off": with_actors(disabled, tmp_path / "e.json", 1)})
