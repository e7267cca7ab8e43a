"""Likely mistakes, typed as a user would: exit code 2, a short message that names what to change."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from pipeline.cli import main as cli
from tools_service import commands as tools_cli

pytestmark = pytest.mark.unit

# The command line, and words that the message must have.
MISTAKES = [
    # commands and names of options
    ("anotate", "'anotate' did you mean annotate"),
    ("ANNOTATE --recipe demo", "did you mean annotate"),
    ("--recipe demo annotate", "--recipe before the command"),
    ("annotate --recipie demo", "--recipie did you mean --recipe"),
    ("annotate -model x", "-model did you mean --model"),
    ("annotate --tau-s 0.1", "--tau-s did you mean --method.calculator.tau-s"),
    ("annotate --method.calculater.k 5", "--method.calculater.k did you mean --method.calculator.k"),
    ("annotate pages/", "unexpected argument 'pages/'"),
    ("generate --jsn prompt", "--jsn did you mean --json"),
    ("merge --one-call-per-position maybe", "unexpected argument 'maybe'"),
    # values
    ("annotate --recipe demoo", "--recipe: 'demoo' demo, single_gpu, paper"),
    ("annotate --recipe", "--recipe: missing"),
    ("annotate --corpus ''", "--corpus must not be empty variable of the shell"),
    ("annotate --model ''", "--model must not be empty"),
    ("annotate --model.path", "--model: missing"),
    ("annotate --corpus.max-tokens 0", "--corpus.max-tokens = 0: must be at least 1"),
    ("annotate --corpus.max-tokens -5", "--corpus.max-tokens = -5 at least 1"),
    ("annotate --corpus.max-tokens many", "--corpus.max-tokens: 'many' is not a whole number"),
    ("annotate --corpus.max-tokens 1.5", "--corpus.max-tokens: '1.5' is not a whole number"),
    ("annotate --max-failed-share 1%", "--max-failed-share: '1%' is not a number"),
    ("annotate --max-failed-share 2", "--max-failed-share at most 1"),
    ("annotate --slice 3", "--slice = '3': as in 0/4"),
    ("annotate --slice 4/4", "--slice = 4/4: 0/4 to 3/4"),
    ("annotate --tools Calculater", "--tools: Calculater did you mean Calculator"),
    ("annotate --tools", "--tools: name at least one tool"),
    ("annotate --tools QA QA", "--tools: each tool once"),
    ("annotate --model.dtype float16", "--model.dtype: 'float16' float32, bfloat16"),
    ("annotate --model.device gpu", "--model.device: 'gpu' auto, cpu, cuda"),
    ("annotate --method.calculator.tau-s 2", "--method.calculator.tau-s at most 1"),
    ("annotate --ray.gpus-per-actor 1.5", "--ray.gpus-per-actor = 1.5 whole number"),
    ("merge --max-examples 0", "--max-examples at least 1"),
    ("merge --tau-f Calculator", "--tau-f: a name and a number --tau-f 1.0 is for every tool"),
    ("merge --tau-f Calculator high", "--tau-f: a name and a number"),
    ("finetune --batch-size 7", "--batch-size = 7 --micro-batch-size change one"),
    ("finetune --zero-stage 4", "--zero-stage: '4' 0, 1, 2, 3"),
    ("export folder --format csv", "--format: 'csv' text, chat, sharegpt"),
    ("export folder --format chat --mask-results", "--mask-results: format = chat"),
    ("score --tokens many lines.jsonl", "--tokens: 'many' is not a number"),
    ("generate --tools-off QAA prompt", "--tools-off: QAA did you mean QA"),
    ("generate --k ten prompt", "--k: 'ten' is not a whole number"),
    ("generate --temperature -1 prompt", "--temperature = -1.0 at least 0"),
    ("generate --date tomorrow prompt", "--date 'tomorrow' YYYY-MM-DD"),
    ("generate --stop '' prompt", "--stop = '' at least 1"),
    ("evaluate --label ''", "--label must not be empty"),
    ("evaluate --plain-perplexity --disabled-perplexity", "--plain-perplexity choose one"),
    ("sweep --k a", "--k: 'a' is not a number"),
    ("thresholds --tau-f", "--tau-f: give at least 1"),
    ("status --watch soon", "--watch: 'soon' is not a number"),
    ("table --rows mine results.json", "--rows: base, plain, disabled, toolformer --rows mine toolformer"),
    ("table --layout lamma results.json", "--layout: 'lamma' lama, math"),
    ("serve --port 70000", "--port = 70000 at most 65535"),
    ("plan --calls-per-s QA", "--calls-per-s: a name and a number"),
    ("plan --hardware H9000", "--hardware: 'H9000' A100"),
    ("plan --utilisation 30", "--utilisation at most 1"),
    ("completion tcsh", "'tcsh' bash, zsh, fish"),
    # files and folders
    ("annotate --corpus nothere/ --tools Calculator", "nothere/: no such file or folder"),
    ("annotate --corpus notes.md --tools Calculator", "notes.md: unknown file type"),
    ("annotate --tools-file nothere.toml", "--tools-file nothere.toml: No such file"),
    ("annotate --tools-file notes.md", "--tools-file notes.md: not TOML"),
    ("merge --annotations nothere --output x", "--annotations 'nothere': no such folder annotate makes it"),
    ("merge --annotations folder --output notes.md", "--output: notes.md is not a folder"),
    ("export nothere --output x", "--data 'nothere': no such folder merge makes it"),
    ("finetune --data nothere --output x", "--data 'nothere': no such folder merge makes it"),
    ("score", "name files of JSON lines"),
    ("score nothere.jsonl --output x", "nothere.jsonl: no such file"),
    ("generate --model folder --tools-off QA WikiSearch MT prompt", "--model 'folder': the folder is empty"),
    ("generate --model folder --file nothere.txt", "nothere.txt: No such file"),
    ("generate --model folder ''", "a prompt is empty"),
    ("evaluate --benchmarks notes.md --model folder --perplexity", "notes.md, line 1"),
    (
        "evaluate --benchmarks foo=notes.md --model folder --perplexity",
        "foo=notes.md: no benchmark 'foo' svamp",
    ),
    ("evaluate --models a", "--models a: LABEL=PATH"),
    ("scaling", "--models: name one or more"),
    ("harness --model folder", "--tasks: name at least one"),
    ("table nothere.json", "--evaluations 'nothere.json': evaluate makes it"),
    ("table damaged.json", "damaged.json: not a result of evaluate"),
    ("report nothere", "nothere: no such folder"),
    ("report notes.md", "notes.md: nothing to show here"),
    ("status nothere", "nothere: no such folder"),
    ("try --corpus folder", "--tool: name the tool to try"),
    ("try --tool Calc --corpus folder", "--tool: Calc did you mean Calculator"),
]

TOOLS_MISTAKES = [
    ("cal Calculator 1+1", "'cal' did you mean call"),
    ("call", "the tool is missing"),
    ("call Calculator", "give the text of one call"),
    ("call Calc 1+1", "TOOL: Calc did you mean Calculator"),
    ("call Calculator 1+1 2+2", "unexpected argument '2+2'"),
    ("call Calendar x --date tomorrow", "--date 'tomorrow' YYYY-MM-DD"),
    ("call WikiSearch x --wikisearch.retriever bm52", "--wikisearch.retriever: 'bm52' bm25"),
    ("call WikiSearch x --wikisearch.source nothere", "--wikisearch.source: nothing to read at nothere"),
    ("index", "--source: name the files"),
    ("index --source nothere", "--source: nothing to read at nothere"),
    ("index --workers -1", "--workers at least 0"),
    ("prompt Calculator --check nothere.txt", "nothere.txt: No such file"),
    ("serve --tools Calc", "--tools: Calc did you mean Calculator"),
    ("serve --tools", "--tools: give at least 1"),
    ("serve --http.port 99999", "--http.port at most 65535"),
    ("serve --adress x", "--adress did you mean --address"),
]


@pytest.fixture(autouse=True)
def a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with a note, an empty folder and a damaged result."""
    (tmp_path / "notes.md").write_text("# A note\n\nWords.\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "damaged.json").write_text(json.dumps({"models": 3}))
    monkeypatch.chdir(tmp_path)
    # What a command reads is what is looked at here, not the files of the demo.
    monkeypatch.setattr(cli, "require_demo_files", lambda arguments, program: None)


@pytest.mark.parametrize(("line", "words"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_explained(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(shlex.split(line)) == 2
    _check(capsys.readouterr().err, words)


@pytest.mark.parametrize(("line", "words"), TOOLS_MISTAKES, ids=[line for line, _ in TOOLS_MISTAKES])
def test_a_mistake_with_the_tools_is_explained(
    line: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tools_cli.main(shlex.split(line)) == 2
    _check(capsys.readouterr().err, words)


def _check(error: str, words: str) -> None:
    assert error.count("\n") <= 3, error
    missing = [word for word in words.split() if word not in error]
    assert not missing, (missing, error)
    for jargon in ("Traceback", "pydantic", "Input should", "parse", "could be instantiated", "STR"):
        assert jargon not in error, error
