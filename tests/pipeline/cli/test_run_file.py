"""The file of a whole run: what it says for one step and for all, what wins, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main as cli
from pipeline.cli.commands import COMMANDS
from pipeline.cli.recipes import RECIPES, RecipeName
from pipeline.cli.run_file import written_as_file
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit

RUN = """\
recipe: single_gpu
model: mine/model
corpus: pages/
output: runs/mine
tools:
  wikisearch: {source: [wiki/]}
annotate:
  method: {calculator: {k: 5}}
finetune: {max_steps: 500, learning_rate: 2e-5}
generate:
  k: 3
evaluate:
  benchmarks: [questions.jsonl]
  models: [base=mine/model, tuned=runs/mine/model]
serve:
  replicas: 2
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write(tmp_path, RUN)


def write(folder: Path, content: str, name: str = "run.yaml") -> Path:
    file = folder / name
    file.write_text(content, encoding="utf-8")
    return file


def parse(command: str, file: Path, *options: str) -> Any:
    return cli.parse(command, ["--config", str(file), *options])


def refused(folder: Path, content: str, command: str = "annotate", name: str = "run.yaml") -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse(command, write(folder, content, name))
    message = str(caught.value)
    assert message.startswith(f"--config {folder / name}")
    assert "\n" not in message
    return message.removeprefix(f"--config {folder / name}")


def test_what_is_said_once_holds_for_all_steps(run: Path) -> None:
    annotate = parse("annotate", run).config
    assert parse("annotate", run).recipe == "single_gpu"
    assert annotate.corpus.paths == ("pages/",)
    assert annotate.corpus.max_tokens == RECIPES["single_gpu"]().annotate.corpus.max_tokens
    assert annotate.output == Path("runs/mine/annotations")
    assert annotate.tools.wikisearch.source == ("wiki/",)
    assert annotate.tools.wikisearch.index == Path("runs/mine/index")
    finetune = parse("finetune", run).config
    assert annotate.model.path == finetune.model.path == "mine/model"
    generate = parse("generate", run).config
    assert generate.model.path == str(finetune.output) == "runs/mine/model"
    assert generate.tools == annotate.tools.at_inference()
    assert parse("merge", run).config.annotations == (annotate.output,)


def test_a_command_reads_its_section_and_later_steps_follow_it(run: Path) -> None:
    assert parse("annotate", run).config.method.calculator.k == 5
    finetune = parse("finetune", run).config
    assert (finetune.max_steps, finetune.learning_rate) == (500, 2e-5)
    assert parse("evaluate", run).config.generation == parse("generate", run).config
    assert parse("evaluate", run).models == ("base=mine/model", "tuned=runs/mine/model")
    serve = parse("serve", run).config
    assert (serve.replicas, serve.generation.k) == (2, 3)
    assert parse("demo", run).config.finetune == finetune
    assert parse("try", run).config.corpus == parse("annotate", run).config.corpus


def test_an_output_of_one_step_is_read_by_the_next(tmp_path: Path) -> None:
    run = write(tmp_path, "annotate: {output: disk/rows}\nfinetune: {output: disk/model}\n")
    assert parse("merge", run).config.annotations == (Path("disk/rows"),)
    assert parse("evaluate", run).config.generation.model.path == "disk/model"


def test_a_date_of_generate_holds_for_evaluate_too(tmp_path: Path) -> None:
    assert parse("evaluate", write(tmp_path, "")).config.generation.date == "2028-01-01"  # of the demo
    run = write(tmp_path, "generate: {date: 2024-02-29}\n")
    assert parse("evaluate", run).config.generation.date == "2024-02-29"
    run = write(tmp_path, "generate: {date: 2024-02-29}\nevaluate: {generation: {date: 2023-01-30}}\n")
    assert parse("evaluate", run).config.generation.date == "2023-01-30"


def test_options_win_over_the_file_and_the_file_over_the_tools_file(run: Path, tmp_path: Path) -> None:
    tools = write(tmp_path, "[wikisearch]\nsource = ['other/']\nretriever = 'dense'\n", "tools.toml")
    wikisearch = parse("annotate", run, "--tools-file", str(tools)).config.tools.wikisearch
    assert (wikisearch.source, wikisearch.retriever) == (("wiki/",), "dense")
    assert parse("generate", run, "--k", "7").config.k == 7
    assert parse("annotate", run, "--recipe", "paper").config.ray.actors == 8
    assert parse("annotate", run, "--corpus", "x.txt").config.corpus.paths == ("x.txt",)
    with_tools = write(tmp_path, f"{RUN}tools_file: {tools}\n", "with_tools.yaml")
    arguments = parse("annotate", with_tools)
    assert arguments.tools_file == tools
    assert arguments.config.tools.wikisearch == wikisearch


def test_toml_says_the_same_as_yaml(run: Path, tmp_path: Path) -> None:
    toml = """\
recipe = "single_gpu"
model = "mine/model"
corpus = "pages/"
output = "runs/mine"
[tools.wikisearch]
source = ["wiki/"]
[annotate.method.calculator]
k = 5
[finetune]
max_steps = 500
learning_rate = 2e-5
[generate]
k = 3
[evaluate]
benchmarks = ["questions.jsonl"]
models = ["base=mine/model", "tuned=runs/mine/model"]
"""
    file = write(tmp_path, toml, "run.toml")
    for command in ("annotate", "finetune", "evaluate"):
        assert parse(command, file).config == parse(command, run).config


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_printed_configuration_read_back_is_the_same(
    command: str, recipe: RecipeName, tmp_path: Path
) -> None:
    arguments = cli.parse(command, ["--recipe", recipe])
    again = parse(command, write(tmp_path, written_as_file(command, arguments)))
    assert again.config == arguments.config
    assert again.recipe == recipe
    assert type(again.config) is type(arguments.config)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("annotate", ["--corpus", "a: b", "été", "'", "--method.qa.tau-s", "1e-07", "--slice", "1/60"]),
        ("merge", ["--tau-f", "Calculator", "1.0", "QA", "-0.5"]),
        ("generate", ["--stop", "\\n", "--date", "2024-02-29", "--tools-off", "QA"]),
        ("evaluate", ["--models", "off=x,disabled", "--benchmarks", "svamp=a.json"]),
        ("sweep", ["--k", "0", "5", "--disabled", "--label", "on"]),
        ("table", ["a.json", "--rows", "gptj", "base"]),
        ("report", ["runs/x"]),
        ("score", ["lines.jsonl", "--tokens", "None"]),
        ("try", ["--tool", "QA", "--given-name"]),
    ],
)
def test_options_are_printed_and_read_back(command: str, options: list[str], tmp_path: Path) -> None:
    arguments = cli.parse(command, options)
    again = parse(command, write(tmp_path, written_as_file(command, arguments)))
    assert again.configuration == arguments.configuration
    for name in ("models", "k", "label", "disabled", "given_name"):
        assert getattr(again, name, None) == getattr(arguments, name, None)


def test_a_tools_file_with_a_tool_of_its_own_is_printed_and_read_back(tmp_path: Path) -> None:
    tools = write(tmp_path, "[tools.Clock]\nhttp = 'http://127.0.0.1:9/clock'\ntau_f = 0.5\n", "tools.toml")
    arguments = cli.parse("annotate", ["--tools-file", str(tools), "--method.clock.k", "2"])
    again = parse("annotate", write(tmp_path, written_as_file("annotate", arguments)))
    assert "Clock" in again.config.method.tools
    assert again.config == arguments.config
    demo = cli.parse("demo", ["--tools-file", str(tools)])
    every_step = write(tmp_path, written_as_file("demo", demo))
    assert parse("demo", every_step).config == demo.config
    assert parse("finetune", every_step).config == demo.config.finetune


def test_print_config_prints_and_runs_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["merge", "--config", str(run), "--print-config"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("recipe: single_gpu\nmerge:\n  annotations:\n  - runs/mine/annotations\n")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "recipe: demo\nanotate: {}\n",
            ", line 2: anotate: there is no such section and no setting for all ",
        ),
        ("anotate: {}\n", "did you mean annotate?"),
        ("annotate:\n  metod: {seed: 1}\n", ", line 2: annotate.metod: there is no such field; did you mean"),
        ("annotate:\n  max-failed-share: 0\n", "did you mean max_failed_share?"),
        (
            "annotate:\n  method:\n    calculator: {kk: 5}\n",
            ", line 3: annotate.method.calculator.kk: there ",
        ),
        ("annotate: {zzz: 1}\n", "there are corpus, model, method, tools, ray, "),
        ("annotate:\n\n  method: {seed: many}\n", ", line 3: annotate.method.seed = 'many': "),
        ("finetune: {zero_stage: 4}\n", ", line 1: finetune.zero_stage = 4: "),
        ("annotate:\n  corpus:\n    paths:\n    - a\n    - 3\n", ", line 5: annotate.corpus.paths = 3: "),
        ("annotate: {corpus: {paths: a}}\n", "must be a list, [A, B]"),
        ("annotate: {method: 3}\n", "annotate.method = 3: "),
        ("annotate: [method]\n", ", line 1: annotate: write the fields of annotate below it"),
        (
            "tools: {wikisearch: {sorce: [a]}}\n",
            ", line 1: tools.wikisearch.sorce: there is no such field; did",
        ),
        ("tools: {declared: []}\n", "tools.declared: there is no such field"),
        ("tools: wiki\n", ", line 1: tools: write fields below it"),
        ("recipe: laptop\n", ", line 1: recipe = 'laptop': "),
        ("output: ''\n", ", line 1: output = '': must not be empty"),
        ("demo: {}\n", "demo: there is no such section"),
        ("generate:\n  k: 1\n  k: 2\n", ", line 3: k is given twice; the first is in line 2"),
        ("evaluate: {models: base}\n", ", line 1: evaluate.models = 'base': "),
        ("on: 1\n", ", line 1: the name on is not a text; write it in quotes"),
        ("1: x\n", ", line 1: the name 1 is not a text"),
        ("? [a]\n: x\n", "is not a text"),
        ("a: &x [1]\nb: *x\n", ", line 2: aliases (*NAME) are not read"),
        ("a: !!python/object/apply:os.system [echo]\n", ", line 1: could not determine a constructor"),
        ("a: [1\n", ", line 2: "),
        ("\tx: 1\n", ", line 1: "),
        ("- a\n", ": holds no settings"),
        ("only words\n", ": holds no settings"),
        ("a: \x07\n", ": not YAML: "),
        ("a: 2024-13-45\n", ": cannot be read: "),
        (f"a: {'[' * 3000}\n", ": nested too deeply"),
        ("---\na: 1\n---\nb: 1\n", ", line "),
    ],
)
def test_a_mistake_is_one_line_with_file_line_and_field(content: str, says: str, tmp_path: Path) -> None:
    assert says in refused(tmp_path, content, "evaluate" if "models" in content else "annotate")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("recipe = demo\n", ": not TOML: Invalid value (at line 1"),
        ("[annotate]\nmetod = 1\n", ": annotate.metod: there is no such field; did you mean method?"),
        ("[annotate]\n[annotate]\n", ": not TOML: "),
    ],
)
def test_a_mistake_in_toml(content: str, says: str, tmp_path: Path) -> None:
    assert says in refused(tmp_path, content, name="run.toml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        parse("annotate", tmp_path / "none.yaml")
    with pytest.raises(ConfigurationError, match="Is a directory"):
        parse("annotate", tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"output: \xe9t\xe9")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        parse("annotate", tmp_path / "latin.yaml")
    with pytest.raises(ConfigurationError, match="--config: must not be empty"):
        cli.parse("annotate", ["--config="])


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert parse("annotate", write(tmp_path, "# nothing\n")).config == cli.parse("annotate", []).config
    assert parse("annotate", write(tmp_path, "annotate:\n")).config == cli.parse("annotate", []).config


def test_the_file_of_the_documentation_is_read_by_every_command(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "run_file.md").read_text(encoding="utf-8")
    run = write(tmp_path, page.split("```yaml\n")[1].split("```")[0])
    for command in COMMANDS:
        parse(command, run)
    assert parse("evaluate", run).config.benchmarks == (Path("questions.jsonl"),)


def test_rounds_stand_at_the_top_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "rounds: 2\nround_prompts: false\noutput: runs/mine\n")
    recipe = parse("demo", file).config
    assert (recipe.rounds, recipe.round_prompts) == (2, False)
    assert recipe.merge.output == Path("runs/mine/augmented")
    assert parse("demo", file, "--rounds", "3").config.rounds == 3
    assert ", line 1: rounds = 0: must be at least 1" in refused(tmp_path, "rounds: 0\n", "demo")
