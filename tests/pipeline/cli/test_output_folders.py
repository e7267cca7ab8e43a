"""Where commands write that are not told where: the recipe's folder holds what the recipe makes, only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli import main as cli
from pipeline.cli.recipes import RECIPES

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def output(command: str, *options: str) -> str:
    return str(cli.parse(command, options).config.output)


@pytest.mark.parametrize(
    ("corpus", "folder"),
    [
        ("mine.jsonl", "demo-mine"),
        ("texts/mine.json.gz", "demo-mine"),
        ("pages/*.json.gz", "demo-pages"),
        ("../pages/", "demo-pages"),
        ("s3://bucket/cc net", "demo-cc-net"),
        ("demo", "demo-demo"),
        ("*.txt", "demo-texts"),
        (".", "demo-texts"),
        ("demo/pages", "demo"),
        ("./demo/pages/", "demo"),
    ],
)
def test_texts_of_ones_own_are_not_annotated_into_the_demos_folder(
    corpus: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert output("annotate", "--corpus", corpus) == f"runs/{folder}/annotations"
    assert output("plan", "--corpus", corpus) == f"runs/{folder}/plan.json"
    said = capsys.readouterr().err
    assert ("--output names another" in said) == (folder != "demo")


def test_a_model_of_ones_own_has_another_folder_too() -> None:
    assert output("annotate", "--model", "openai-community/gpt2") == "runs/demo-gpt2/annotations"
    assert output("finetune", "--model", "/models/gpt2.large") == "runs/demo-gpt2.large/model"


def test_a_recipe_without_texts_of_its_own_keeps_its_folder() -> None:
    assert output("annotate", "--recipe", "single_gpu", "--corpus", "a") == "runs/single_gpu/annotations"


def test_an_output_that_is_given_is_taken(tmp_path: Path) -> None:
    given = "runs/demo/annotations"
    assert output("annotate", "--corpus", "a.txt", "--output", given) == given
    assert output("annotate", "--corpus", "a.txt", f"--output={given}") == given
    file = tmp_path / "run.yaml"
    file.write_text("corpus: a.txt\noutput: runs/x\n", encoding="utf-8")
    assert output("annotate", "--config", "run.yaml") == "runs/x/annotations"
    file.write_text("corpus: a.txt\n", encoding="utf-8")
    assert output("annotate", "--config", "run.yaml") == "runs/demo-a/annotations"


def test_a_later_step_writes_beside_what_it_reads(tmp_path: Path) -> None:
    assert output("merge", "--annotations", "runs/demo-a/annotations") == "runs/demo-a/augmented"
    assert output("finetune", "--data", "runs/demo-a/augmented") == "runs/demo-a/model"
    assert output("export", "runs/demo-a/augmented") == "runs/demo-a/export"
    model = tmp_path / "runs" / "demo-a" / "model"
    model.mkdir(parents=True)
    options = ("--model", "runs/demo-a/model")
    assert output("evaluate", *options) == "runs/demo/evaluation.json"
    values = {"config": 1, "versions": 1, "created": 1, "texts": 1, "best": 1, "wall_s": 1, "data": 1}
    (model / "manifest.json").write_text(json.dumps(values), encoding="utf-8")
    for command, name in (("evaluate", "evaluation"), ("sweep", "sweep"), ("harness", "harness")):
        assert output(command, *options) == f"runs/demo-a/{name}.json"


@pytest.mark.parametrize(("inside", "name"), [("rows", ".."), ("", ".")])
def test_a_later_step_never_writes_into_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str, name: str
) -> None:
    folder = tmp_path / "mine" / "annotations"
    (folder / inside).mkdir(parents=True)
    monkeypatch.chdir(folder / inside)
    assert output("merge", "--annotations", name) == str(tmp_path / "mine" / "augmented")
    assert output("finetune", "--data", name) == str(tmp_path / "mine" / "model")


def test_without_other_inputs_the_outputs_are_the_recipes() -> None:
    assert output("merge") == "runs/demo/augmented"
    assert output("finetune", "--column", "plain") == "runs/demo/model"
    assert output("evaluate") == "runs/demo/evaluation.json"


@pytest.mark.parametrize("annotations", [["runs/a", "runs/b"], ["runs/slices/*"]])
def test_several_annotations_need_an_output(
    annotations: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["merge", "--annotations", *annotations]) == 2
    assert "--output: name the folder for C* of several annotations" in capsys.readouterr().err


def test_all_steps_of_the_demo_move_with_its_texts() -> None:
    recipe = cli.parse("demo", ["--annotate.corpus.paths", "a.txt", "--finetune.output", "elsewhere"]).config
    outputs = [recipe.annotate.output, recipe.merge.output, recipe.finetune.output, recipe.evaluate.output]
    folder = Path("runs/demo-a")
    assert outputs[:2] == [folder / "annotations", folder / "augmented"]
    assert outputs[2:] == [Path("elsewhere"), folder / "evaluation.json"]
    assert cli.parse("demo", []).config == RECIPES["demo"]()
