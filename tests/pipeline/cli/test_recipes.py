"""Recipes: each is a whole chain whose steps read what the step before wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.config import MethodConfig
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.cli.recipes import RECIPES, RecipeName
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
