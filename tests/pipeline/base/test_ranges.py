"""Every field has a range, and the command lines refuse a value outside of it in one line."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.base import analysis_config, finetune_config, harness_config, inference_config, serve_config
from pipeline.base import config as pipeline_config
from pipeline.base.config import MethodConfig
from pipeline.cli import main as cli
from pipeline.cli.commands import COMMANDS
from pipeline.cli.recipes import RECIPES
from tools_service import commands as tools_cli
from tools_service import config as tools_config
from tools_service.base import settings
from tools_service.base.settings import Frozen

pytestmark = pytest.mark.unit

MODELS = [
    model
    for module in (
        pipeline_config,
        analysis_config,
        finetune_config,
        harness_config,
        inference_config,
        serve_config,
        tools_config,
    )
    for _, model in inspect.getmembers(module, inspect.isclass)
    if issubclass(model, Frozen) and model is not Frozen
]


def leaves(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[tuple[Any, Any]]:
    """Each plain type within an annotation, with the annotation to validate it by."""
    if get_origin(annotation) is Annotated:
        yield from leaves(get_args(annotation)[0], get_args(annotation)[1:])
    elif (
        get_args(annotation)
        and get_origin(annotation) is not None
        and str(annotation)[:14] != "typing.Literal"
    ):
        for inner in get_args(annotation):
            yield from leaves(inner)
    elif annotation in (int, float, Path):
        yield annotation, Annotated[annotation, *metadata] if metadata else annotation


FIELDS = [
    pytest.param(kind, checked, id=f"{model.__name__}.{name}")
    for model in MODELS
    for name, hint in get_type_hints(model, include_extras=True).items()
    if name in model.model_fields
    for kind, checked in leaves(hint)
]


@pytest.mark.parametrize(("kind", "checked"), FIELDS)
def test_every_number_has_bounds_and_every_path_refuses_an_empty_text(kind: Any, checked: Any) -> None:
    adapter = TypeAdapter(checked)
    if kind is Path:
        refused: list[Any] = ["", "  ", "a\0b"]
    elif kind is int:
        refused = [-(10**30), 10**30]
    else:
        refused = [-1e300, 1e300, math.nan, math.inf, -math.inf]
    for value in refused:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


def test_the_table_above_has_all_fields() -> None:
    assert len(FIELDS) > 80
    kinds = {param.values[0] for param in FIELDS}
    assert kinds == {int, float, Path}


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "2023-13-01",
        "2023-02-30",
        "today",
        "1.2.2023",
        "01-02-2023",
        "2023-1-1",
        "2023-01-01T00:00",
        "0000-01-01",
    ],
)
def test_a_date_is_a_date(text: str) -> None:
    with pytest.raises(ValidationError, match="YYYY-MM-DD"):
        TypeAdapter(settings.IsoDate).validate_python(text)
    assert TypeAdapter(settings.IsoDate).validate_python("2023-01-30") == "2023-01-30"


WRONG = [
    ("generate", "--k -1"),
    ("generate", "--k 99999999999999999999999"),
    ("generate", "--max-new-tokens 0"),
    ("generate", "--date tomorrow"),
    ("generate", "--model ''"),
    ("generate", "--file ''"),
    ("generate", "--model.max-batch-tokens 0"),
    ("generate", "--max-call-tokens.mt 0"),
    ("evaluate", "--batch-size 0"),
    ("evaluate", "--benchmarks ''"),
    ("evaluate", "--benchmarks a.jsonl ''"),
    ("evaluate", "--perplexity ''"),
    ("evaluate", "--output ''"),
    ("evaluate", "--generation.date 2023"),
    ("harness", "--limit 0"),
    ("harness", "--limit nan"),
    ("harness", "--max-length 1"),
    ("harness", "--tasks ''"),
    ("harness", "--num-fewshot -1"),
    ("harness", "--include-path ''"),
    ("finetune", "--max-steps 0"),
    ("finetune", "--sequence-length 1"),
    ("finetune", "--learning-rate nan"),
    ("finetune", "--learning-rate 0"),
    ("finetune", "--warmup-share 1.5"),
    ("finetune", "--batch-size 7"),
    ("finetune", "--seed -1"),
    ("finetune", "--data ''"),
    ("finetune", "--deepspeed ''"),
    ("merge", "--tau-f QA nan"),
    ("merge", "--annotations"),
    ("merge", "--annotations ''"),
    ("merge", "--max-examples 0"),
    ("export", "--data ''"),
    ("export", "--output ''"),
    ("export", "--instruction ''"),
    ("annotate", "--corpus ''"),
    ("annotate", "--corpus.slice 3/3"),
    ("annotate", "--corpus.slice 0/0"),
    ("annotate", "--method.qa.tau-f inf"),
    ("annotate", "--method.qa.tau-s nan"),
    ("annotate", "--method.mt.m 0"),
    ("annotate", "--method.prompts ''"),
    ("annotate", "--tools"),
    ("annotate", "--tools MT MT"),
    ("annotate", "--ray.actors 0"),
    ("annotate", "--ray.gpus-per-actor 1.5"),
    ("annotate", "--ray.gpus-per-actor 0.00001"),
    ("annotate", "--ray.cpus-per-actor 0"),
    ("annotate", "--max-failed-share 2"),
    ("annotate", "--tools.wikisearch.source ''"),
    ("annotate", "--tools.wikisearch.index ''"),
    ("annotate", "--tools.mt.deployment.max-replicas 0"),
    ("annotate", "--tools-file ''"),
    ("plan", "--utilisation 0"),
    ("plan", "--calls-per-s QA -3"),
    ("plan", "--deadline-hours inf"),
    ("plan", "--like ''"),
    ("demo", "--annotate.method.qa.k 0"),
    ("demo", "--evaluate.output ''"),
]


@pytest.mark.parametrize(("command", "options"), WRONG)
def test_a_value_out_of_range_is_one_line_and_code_2(
    command: str, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [command, *(option.strip("'") for option in options.split())]
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Traceback" not in error
    field = argv[1].split(".")[-1].removeprefix("--").replace("_", "-")
    assert field.split("-")[0] in error


@pytest.mark.parametrize(
    "argv",
    [
        ["serve", "--http.port", "70000"],
        ["serve", "--http.port", "-1"],
        ["serve", "--http.host", ""],
        ["serve", "--http.token-file", ""],
        ["serve", "--tools"],
        ["serve", "--address", ""],
        ["call", "Calendar", "", "--date", "2020-13-13"],
        ["call", "QA", "x", "--qa.beams", "0"],
        ["index", "--workers", "-1"],
        ["index", "--index", ""],
        ["index", "--source", ""],
        ["index", "--encoder.model", ""],
    ],
)
def test_the_tools_command_line_does_the_same(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert tools_cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert argv[-2] in error or argv[-1] in error


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipes_are_in_range_and_survive_json(name: str, recipe: Any) -> None:
    config = COMMANDS[name].config(RECIPES[recipe]())
    assert type(config).model_validate_json(config.model_dump_json()) == config
    assert cli.parse(name, ["--recipe", recipe]).config == config


def test_a_manifest_of_an_earlier_version_is_still_read() -> None:
    old = json.loads(MethodConfig().model_dump_json())
    old["mt"]["max_call_tokens"] = 60
    assert MethodConfig.model_validate(old).mt.max_call_tokens == 60
