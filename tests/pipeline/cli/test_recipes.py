"""Recipes: each is a whole chain whose steps read what the step before wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.base.config import MethodConfig
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.cli.recipes import RECIPES, RecipeName, linked, rounds_of, written_below
from tools_service.config import CalendarConfig, ToolsConfig
from tools_service.tools_file import with_tools_file

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", RECIPES)
def test_every_step_reads_what_the_step_before_it_wrote(name: RecipeName) -> None:
    recipe = RECIPES[name]()
    assert recipe.merge.annotations == (recipe.annotate.output,)
    assert recipe.finetune.data == recipe.merge.output
    assert recipe.generate.model.path == str(recipe.finetune.output)
    date = recipe.evaluate.generation.date
    assert recipe.evaluate.generation == recipe.generate.model_copy(update={"date": date})
    assert recipe.finetune.model == recipe.annotate.model
    today = CalendarConfig(today=True)
    assert recipe.generate.tools == recipe.annotate.tools.model_copy(update={"calendar": today})


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_writes_below_its_own_folder(name: RecipeName) -> None:
    recipe = RECIPES[name]()
    outputs = [step.output for step in (recipe.annotate, recipe.merge, recipe.finetune, recipe.evaluate)]
    assert {output.parent for output in outputs} == {Path("runs") / name}
    assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize("name", RECIPES)
def test_workers_can_share_the_batch(name: RecipeName) -> None:
    finetune = RECIPES[name]().finetune
    assert finetune.batch_size % (finetune.workers * finetune.micro_batch_size) == 0


def test_paper_is_the_papers_method_and_training() -> None:
    recipe = RECIPES["paper"]()
    assert recipe.annotate.method == MethodConfig()
    assert recipe.annotate.method.tools == ("QA", "WikiSearch", "Calculator", "Calendar", "MT")
    wanted = FinetuneConfig(data=recipe.merge.output, output=recipe.finetune.output)
    assert recipe.finetune == wanted
    assert recipe.finetune.model.path == "EleutherAI/gpt-j-6b"


def test_the_demos_tools_file_says_what_its_recipe_says() -> None:
    file = Path(__file__).parents[3] / "demo" / "tools.toml"
    assert with_tools_file(ToolsConfig(), file) == RECIPES["demo"]().annotate.tools


def test_demo_needs_no_gpu_and_no_network() -> None:
    recipe = RECIPES["demo"]()
    assert recipe.annotate.model.device == recipe.generate.model.device == "cpu"
    assert recipe.annotate.ray.gpus_per_actor == 0
    assert not recipe.finetune.use_gpu
    tools = recipe.annotate.tools
    assert tools.qa.device == tools.mt.device == "cpu"
    assert all(
        path.startswith("demo/") for path in (recipe.annotate.model.path, tools.qa.model, tools.mt.model)
    )


@pytest.mark.parametrize("name", RECIPES)
def test_one_round_is_the_recipe_itself(name: RecipeName) -> None:
    recipe = RECIPES[name]()
    assert recipe.rounds == 1
    assert rounds_of(recipe) == [recipe]


@pytest.mark.parametrize("name", RECIPES)
def test_a_later_round_annotates_with_the_model_before_and_trains_the_base_model(name: RecipeName) -> None:
    recipe = RECIPES[name]().model_copy(update={"rounds": 3})
    first, second, third = rounds_of(recipe)
    folder = Path("runs") / name
    assert first == recipe
    assert second.annotate.model.path == str(folder / "model")
    assert third.annotate.model.path == str(folder / "round-2" / "model")
    assert second.finetune.model == third.finetune.model == recipe.annotate.model
    assert third.merge.annotations == tuple(
        folder / where / "annotations" for where in ("", "round-2", "round-3")
    )
    assert second.merge.annotations == third.merge.annotations[:2]
    assert (first.merge.same_texts, second.merge.same_texts) == ("refuse", "unite")
    assert second.finetune.data == second.merge.output == folder / "round-2" / "augmented"
    assert second.finetune.output == folder / "round-2" / "model"
    for one in (second, third):
        assert one.generate.model.path == one.evaluate.generation.model.path == str(one.finetune.output)
        assert one.annotate.method == recipe.annotate.method
        assert one.annotate.corpus == recipe.annotate.corpus


def test_later_rounds_may_go_without_prompts() -> None:
    recipe = RECIPES["demo"]().model_copy(update={"rounds": 2, "round_prompts": False})
    first, second = rounds_of(recipe)
    assert first.annotate.method.use_prompts
    assert second.annotate.method == first.annotate.method.model_copy(update={"use_prompts": False})


def test_rounds_outlive_what_is_made_of_a_recipe() -> None:
    recipe = RECIPES["demo"]().model_copy(update={"rounds": 2, "round_prompts": False})
    moved = linked(written_below(recipe, Path("elsewhere")))
    assert (moved.rounds, moved.round_prompts) == (2, False)
    assert rounds_of(moved)[1].annotate.output == Path("elsewhere/round-2/annotations")


@pytest.mark.parametrize("rounds", [0, 100, 1.5])
def test_a_number_of_rounds_that_makes_no_sense_is_refused(rounds: float) -> None:
    recipe = RECIPES["demo"]()
    with pytest.raises(ValidationError, match="rounds"):
        type(recipe).model_validate(recipe.model_dump() | {"rounds": rounds})
