"""`--models`: what an entry means, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.inference_config import EvaluateConfig
from pipeline.cli.arguments import EvaluateArguments
from pipeline.cli.evaluating import ModelsError, configs_of
from pipeline.cli.main import parse

pytestmark = pytest.mark.unit


def test_one_model_is_the_configurations() -> None:
    config = EvaluateConfig()
    assert configs_of(config, None, ()) == {"model": config}
    assert configs_of(config, "toolformer", ()) == {"toolformer": config}


def test_each_entry_is_a_model_with_settings_of_its_own() -> None:
    entries = (
        "base=a/b,plain-perplexity",
        "t=c",
        "off=c,disabled",
        "k1=c,k=1,max_calls=2",
        "no=c,disabled=false",
    )
    found = configs_of(EvaluateConfig(output=Path("e.json")), None, entries)
    paths = {label: config.generation.model.path for label, config in found.items()}
    assert paths == {"base": "a/b", "t": "c", "off": "c", "k1": "c", "no": "c"}
    assert [label for label, config in found.items() if config.plain_perplexity] == ["base"]
    assert [label for label, config in found.items() if config.generation.disabled] == ["off"]
    assert (found["k1"].generation.k, found["k1"].generation.max_calls, found["t"].generation.k) == (1, 2, 10)
    assert {config.output for config in found.values()} == {Path("e.json")}


def test_a_folder_may_have_a_comma_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    [config] = configs_of(EvaluateConfig(), None, (f"m={tmp_path}/a,b",)).values()
    assert config.generation.model.path == f"{tmp_path}/a,b"


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        (("base",), "--models base: use LABEL=PATH"),
        (("=path",), "--models =path: use LABEL=PATH"),
        (("base=",), "--models base=: use LABEL=PATH"),
        (("a=x", "a=y"), "the label a is given twice"),
        (("a=x,fast",), "no setting 'fast'; after the path can stand k, disabled"),
        (("a=x,k=-1",), r"--models a=x,k=-1: k = "),
        (("a=x,k",), r"--models a=x,k: k = "),
        (("a=x,disabled=perhaps",), "disabled"),
    ],
)
def test_what_is_wrong_is_said(entries: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ModelsError) as refused:
        configs_of(EvaluateConfig(), None, entries)
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_label_and_models_are_refused() -> None:
    with pytest.raises(ModelsError, match="give --models or --label m, not both"):
        configs_of(EvaluateConfig(), "m", ("a=x",))


def test_the_command_line() -> None:
    arguments = parse(
        "evaluate", ["--models", "a=x", "b=y,disabled", "--compare-with", "a", "--ray.actors", "2"]
    )
    assert isinstance(arguments, EvaluateArguments)
    assert arguments.models == ("a=x", "b=y,disabled")
    assert (arguments.config.compare_with, arguments.config.ray.actors) == ("a", 2)
