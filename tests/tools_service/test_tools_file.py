"""The tools' file: laid over a recipe, below the command line, and refused by file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.main import main as pipeline_main
from pipeline.cli.main import parse as pipeline_parse
from tools_service.commands import main, parse
from tools_service.config import ToolsConfig, WikiSearchConfig
from tools_service.contract.declarations import PACKAGED
from tools_service.contract.spec import ToolMethod
from tools_service.tools_file import ToolsFileError, tools_file_of, with_tools_file

pytestmark = pytest.mark.unit

EXAMPLE = Path(__file__).parents[2] / "cluster" / "tools.toml"


def written(folder: Path, text: str) -> Path:
    file = folder / "tools.toml"
    file.write_text(text)
    return file


def test_the_example_is_read() -> None:
    config = with_tools_file(ToolsConfig(), EXAMPLE)
    assert config.wikisearch.source == ("/shared/encyclopedia",)
    assert (config.mt.deployment.gpus, config.mt.deployment.max_replicas) == (0.5, 2)


def test_what_the_file_does_not_name_stays(tmp_path: Path) -> None:
    before = ToolsConfig(wikisearch=WikiSearchConfig(source=("wiki",), index=Path("there")), cache_size=7)
    file = written(tmp_path, "[wikisearch]\nretriever = 'hybrid'\n[wikisearch.deployment]\ncpus = 2\n")
    after = with_tools_file(before, file)
    deployment = before.wikisearch.deployment.model_copy(update={"cpus": 2})
    section = before.wikisearch.model_copy(update={"retriever": "hybrid", "deployment": deployment})
    assert after == before.model_copy(update={"wikisearch": section})
    assert with_tools_file(before, None) is before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[wikisearch]\nretriver = 'bm25'",
            "wikisearch.retriver: there is no such key; there are deployment, source, ",
        ),
        (
            "[abacus]\n",
            "abacus: there is no such key; there are service, max_result_tokens, cache_size, qa, ",
        ),
        ("[mt.deployment]\ncpu = 1", "mt.deployment.cpu: there is no such key; there are min_replicas, "),
        ("[mt.deployment]\ncpus = -1", "mt.deployment.cpus: "),
        ("[mt.deployment]\nmin_replicas = 3", "max_replicas = 1 is below min_replicas = 3"),
        ("mt = 3", "mt: "),
        ("service = 'with space'", "service: "),
        ("[mt", "not TOML: "),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ToolsFileError) as refused:
        with_tools_file(ToolsConfig(), file)
    assert f"--tools-file {file}: " in str(refused.value)
    assert said in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolsFileError, match="No such file"):
        with_tools_file(ToolsConfig(), tmp_path / "nowhere.toml")
    (tmp_path / "latin").write_bytes(b"service = '\xe9'")
    with pytest.raises(ToolsFileError, match="not TOML"):
        with_tools_file(ToolsConfig(), tmp_path / "latin")
    with pytest.raises(ToolsFileError, match="null byte"):
        with_tools_file(ToolsConfig(), Path("a\0b"))


@pytest.mark.parametrize("argv", [["--tools-file", "a"], ["--x", "--tools-file=a"], ["--tools_file", "a"]])
def test_the_option_is_found_before_the_rest_is_parsed(argv: list[str]) -> None:
    assert tools_file_of(argv) == Path("a")
    assert tools_file_of([]) is None


def test_command_line_over_file_over_recipe(tmp_path: Path) -> None:
    file = written(tmp_path, "cache_size = 7\nmax_result_tokens = 8\n[mt]\nmodel = 'some/model'\n")
    options = ["--tools-file", str(file), "--tools.cache-size", "9"]
    tools = pipeline_parse("annotate", ["--recipe", "demo", *options]).config.tools
    assert (tools.cache_size, tools.max_result_tokens, tools.mt.model) == (9, 8, "some/model")
    assert tools.wikisearch.source == ("demo/encyclopedia",)
    for recipe in (pipeline_parse("demo", ["--tools-file", str(file)]).config,):
        assert {recipe.annotate.tools.cache_size, recipe.evaluate.generation.tools.cache_size} == {7}
        assert recipe.evaluate.generation.tools.calendar.today  # the recipe's, not in the file

    serve = parse(["serve", "--tools-file", str(file), "--cache-size", "9"]).config
    assert isinstance(serve, ToolsConfig)
    assert (serve.cache_size, serve.max_result_tokens, serve.calendar.today) == (9, 8, True)


def test_both_commands_end_with_code_2_and_say_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(written(tmp_path, "[qa]\nnonsense = 1\n"))
    assert main(["call", "Calculator", "1", "--tools-file", file]) == 2
    assert pipeline_main(["annotate", "--tools-file", file]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [f"{file}: qa.nonsense: there is no such key" in line for line in said] == [True, True]


UNITS = "[tools.Units]\nclass = 'tests.tools_service.own_tools:convert'\n"


def test_a_file_declares_tools_and_changes_others(tmp_path: Path) -> None:
    text = UNITS + (
        "prompt = 'units.txt'\nselect = { pattern = '\\d+ km' }\ntau_s = 0.0\nk = 7\nmax_call_tokens = 9\n"
        "[tools.Units.deployment]\ncpus = 2\n[tools.MT]\nm = 3\nmodel = 'some/model'\n[mt]\nbeams = 4\n"
    )
    file = written(tmp_path, text)
    parsed = pipeline_parse("annotate", ["--recipe", "demo", "--tools-file", str(file)]).config
    assert parsed.method.tools == (*PACKAGED, "Units")
    assert parsed.method.of("Units") == ToolMethod(
        tau_s=0.0, k=7, max_call_tokens=9, prompt=tmp_path / "units.txt", select={"pattern": r"\d+ km"}
    )
    assert parsed.method.of("MT").m == 3
    assert parsed.tools.of("Units").deployment.cpus == 2
    assert (parsed.tools.of("MT").model, parsed.tools.of("MT").beams) == ("some/model", 4)
    assert type(parsed).model_validate_json(parsed.model_dump_json()) == parsed

    options = ["--tools-file", str(file), "--method.units.k", "3", "--tools.units.deployment.cpus", "1"]
    changed = pipeline_parse("annotate", ["--recipe", "demo", "--tools", "Units", *options]).config
    assert changed.method.tools == ("Units",)
    assert (changed.method.of("Units").k, changed.tools.of("Units").deployment.cpus) == (3, 1)

    generate = pipeline_parse("generate", ["1", "--tools-file", str(file)]).config
    assert generate.max_call_tokens.of("Units") == 9
    assert parse(["call", "Units", "1", "--tools-file", str(file)]).tool == "Units"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tools = 3", "tools: must be tables, [tools.NAME]"),
        ("[tools]\nUnits = 3", "tools.Units: must be a table"),
        ("[tools.Units]\nclas = 'a:b'", "tools.Units: say what answers its calls: class = "),
        ("[tools.Units]\nclass = 3", "tools.Units.class: "),
        ("[tools.Units]\nclass = 'units.convert'", "tools.Units.class: must name an object of Python"),
        ("[tools.Units]\nclass = 'no_such_module:f'", "tools.Units.class = 'no_such_module:f': there is no "),
        ("[tools.Units]\nclass = 'tests.tools_service.own_tools:f'", "has no attribute 'f'"),
        ("[tools.Units]\nclass = 'a:b'\nhttp = 'http://x'", "class and http exclude each other; keep one"),
        ("[tools.Units]\nmcp = 3", "tools.Units.mcp: must be a table"),
        (UNITS + "kk = 3", "tools.Units.kk: there is no such key; there are "),
        (UNITS + "k = 0", "tools.Units.k: "),
        (UNITS + "tau_s = 2", "tools.Units.tau_s: "),
        (UNITS + "select = 'some'", "tools.Units.select.rule: must be "),
        (UNITS + "select = { pattern = '(' }", "tools.Units.select.pattern: must be a regular expression"),
        (UNITS + "arguments = 'json'", "tools.Units.arguments: "),
        (UNITS + "name = 'Other'", "tools.Units.name: there is no such key"),
        (UNITS + "[tools.Units.deployment]\ncpu = 1", "tools.Units.deployment.cpu: there is no such key"),
        (UNITS.replace("Units", "9a"), "tools.9a.name: must be a letter"),
        (UNITS.replace("Units", "qa"), "there is a tool QA already"),
        ("[tools.Calculator]\nk = 'x'", "tools.Calculator.k: "),
        ("[tools.Calculator]\npassages = 3", "calculator.passages: there is no such key"),
        ("[tools.Calendar]\ntakes_input = true", "tools.Calendar.takes_input: only the declaration"),
    ],
)
def test_a_wrong_declaration_is_refused_by_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ToolsFileError) as refused:
        pipeline_parse("annotate", ["--tools-file", str(file)])
    assert f"--tools-file {file}: " in str(refused.value)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
