"""The pages of the reference name everything that the code has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import isclass
from typing import Any

import pyarrow as pa
import pytest
import tyro

import pipeline.base.analysis_config
import pipeline.base.config
import pipeline.base.harness_config
import pipeline.base.inference_config
import pipeline.base.serve_config
import tools_service.config
import tools_service.contract.settings
import tools_service.contract.spec
import tools_service.remote.settings
from cluster.submit import ROOT
from pipeline.cli import main
from pipeline.cli.commands import COMMANDS
from pipeline.report.reasons import ReasonStage
from pipeline.storage import kinds
from reference import commands, configuration, errors, metrics, output_fields, reasons
from reference.meanings import MEANINGS
from tests.test_method_page import reasons_in, reasons_of_draws, reasons_of_selection, reasons_of_tools
from tools_service.base.errors import ConfigurationError, ToolformerError
from tools_service.base.option_fields import TOOL, model_fields
from tools_service.base.ownership import OutputKind
from tools_service.base.settings import Frozen
from tools_service.contract.declarations import installed_tools

pytestmark = pytest.mark.unit

CONFIGURATIONS = (
    pipeline.base.analysis_config,
    pipeline.base.config,
    pipeline.base.harness_config,
    pipeline.base.inference_config,
    pipeline.base.serve_config,
    tools_service.config,
    tools_service.contract.settings,
    tools_service.contract.spec,
    tools_service.remote.settings,
)
TOOLS = [spec.section for spec in installed_tools().values()]


@pytest.fixture(scope="module")
def command_pages() -> dict[str, str]:
    return commands.pages()


@pytest.fixture(scope="module")
def configuration_page() -> str:
    return configuration.page()


def options_of_command(name: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The options that the parser of a command knows, without the forms that switch one off."""
    parsers = []

    def cli(arguments: Any, *, args: object, **options: Any) -> None:
        parsers.append(tyro.extras.get_parser(arguments, **options))
        raise SystemExit(0)

    monkeypatch.setattr(tyro, "cli", cli)
    with pytest.raises(SystemExit):
        main.parse(name, [])
    found = {option for action in parsers[0]._actions for option in action.option_strings}
    return {option for option in found if not re.search(r"^-\w$|(--|\.)no-", option)} - {"--help"}


def options_of_page(page: str) -> Iterator[str]:
    for option in re.findall(r"^\| `(--\S+)`", page, re.MULTILINE):
        yield from (option.replace(TOOL, tool) for tool in TOOLS) if TOOL in option else [option]


@pytest.mark.filterwarnings("ignore:get_parser")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_has_every_option_of_its_command(
    name: str, command_pages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of_command(name, monkeypatch)
    assert len(options) >= 3
    assert not options - {*options_of_page(command_pages[name]), "--recipe"}


def test_the_list_of_commands_has_a_page_for_each(command_pages: dict[str, str]) -> None:
    linked = re.findall(r"\(commands/(\S+?)\.md\)", commands.index())
    assert linked == list(command_pages)
    assert command_pages.keys() >= COMMANDS.keys()
    assert (
        "[`doctor`](../doctor.md)" in commands.index()
    )  # a command without a recipe, with a page of its own


def test_an_option_has_type_help_and_the_defaults_of_the_recipes(command_pages: dict[str, str]) -> None:
    rows = re.findall(
        r"^\| `(--corpus.max-tokens|--method.TOOL.tau-f)` \|(.*)", command_pages["annotate"], re.M
    )
    assert [row.split(" | ")[:2] for _, row in rows] == [
        [" whole number, at least 1", "demo: `112`<br>single_gpu: `256`<br>paper: `512`"],
        [" number", "`1.0`; calculator, mt: `0.5`"],
    ]
    assert "The context must hold the prompt" in rows[0][1]


def test_no_option_is_without_a_help_text(command_pages: dict[str, str]) -> None:
    for name, page in command_pages.items():
        assert not re.findall(r"^\| `?--.*\|  \|$", page, re.MULTILINE), name


def classes_of(module: Any) -> Iterator[type[Frozen]]:
    for value in vars(module).values():
        if isclass(value) and issubclass(value, Frozen) and value.__module__ == module.__name__:
            yield value


@pytest.mark.parametrize("module", CONFIGURATIONS, ids=lambda module: module.__name__)
def test_the_configuration_has_every_field_of_every_class(module: Any, configuration_page: str) -> None:
    for model in classes_of(module):
        if model.__subclasses__() and model not in configuration.models():
            continue  # the part that several classes share
        [section] = re.findall(
            rf"^## {model.__name__}$(.*?)(?=^## |\Z)", configuration_page, re.MULTILINE | re.DOTALL
        )
        rows = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
        assert rows == {model.model_fields[f.name].alias or f.name for f in model_fields(model)}, model


def test_every_metric_is_listed_under_its_names_in_prometheus() -> None:
    source = (ROOT / "pipeline" / "annotation" / "metrics.py").read_text()
    names = re.findall(r'"(toolformer_\w+)"', source)
    assert len(names) > 8
    listed = re.findall(r"`ray_(\w+)`", metrics.page())
    endings = "(_total|_bucket|_sum|_count)?"
    assert not [name for name in names if not any(re.fullmatch(name + endings, one) for one in listed)]


@pytest.mark.parametrize("output", output_fields.OUTPUTS, ids=lambda output: output.title)
def test_every_output_field_has_a_type_and_a_meaning(output: output_fields.Output) -> None:
    fields = list(output_fields.fields_of(output))
    assert len({field.path for field in fields}) == len(fields) > 3
    assert not [field.path for field in fields if not field.meaning or not field.type]
    if isinstance(output.fields, pa.Schema):
        assert {field.path for field in fields} >= set(output.fields.names)


def test_every_meaning_is_that_of_a_field() -> None:
    paths = [field.path for output in output_fields.OUTPUTS for field in output_fields.fields_of(output)]
    assert not [name for name in MEANINGS if not any(f".{path}".endswith(f".{name}") for path in paths)]


def test_every_kind_of_output_is_listed() -> None:
    fields = [{f.path for f in output_fields.fields_of(output)} for output in output_fields.OUTPUTS]
    of_others = {"a result of harness"}  # the file is the harness's own
    for kind in vars(kinds).values():
        if isinstance(kind, OutputKind) and kind.name not in of_others | {kinds.TOKENS.name}:
            marks = kind.marks.get("manifest.json") or kind.marks[""]
            assert any(marks <= paths for paths in fields), kind.name


def subclasses(error: type[Exception]) -> Iterator[type[Exception]]:
    yield error
    for subclass in error.__subclasses__():
        yield from subclasses(subclass)


def test_every_error_is_listed_with_its_exit_code() -> None:
    listed = {(error.module, error.name): error.exit_code for error in errors.all_errors()}
    loaded = [error for error in subclasses(ToolformerError) if error.__module__.startswith(errors.PACKAGES)]
    assert len(loaded) > 10
    for error in loaded:
        assert listed[error.__module__, error.__name__] == error.exit_code, error
        assert error.exit_code in errors.EXIT_CODES
        assert (error.exit_code == 2) == issubclass(error, ConfigurationError), error
    page = errors.page()
    assert all(f"`{name}`" in page for _, name in listed)


def test_the_exit_codes_are_those_of_the_command_line() -> None:
    described = (main.__doc__ or "").partition("Exit codes:")[2]
    codes = {int(code) for code in re.findall(r"(?:^|; )\s*(\d+)\s", described)}
    assert codes == errors.EXIT_CODES.keys()


@pytest.mark.parametrize(
    ("stage", "in_code"),
    [
        ("not selected", reasons_of_selection()),
        ("discarded draw", reasons_of_draws()),
        ("no result", reasons_of_tools()),
        ("not scored", reasons_in("pipeline/method/filtering.py", "_discard")),
    ],
)
def test_every_reason_is_listed_with_its_meaning(stage: ReasonStage, in_code: set[str]) -> None:
    assert {reason for _, reason in reasons.of_stage(stage)} == in_code
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| ([^|]+) \| [^|]+ \|$", reasons.page(), re.MULTILINE)
    assert in_code <= {reason for reason, _ in rows}
    assert all(meaning.strip() for _, meaning in rows)


def test_every_kind_of_skipped_text_is_listed() -> None:
    sources = [path.read_text() for path in (ROOT / "pipeline" / "corpus").glob("*.py")]
    sources.append((ROOT / "tools_service" / "base" / "lines.py").read_text())
    listed = reasons.skipped()
    assert len(listed) > 12
    assert not [kind for kind in listed if kind not in "\n".join(sources)]
