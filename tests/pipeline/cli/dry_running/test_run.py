"""`--dry-run` says what would be read, run and written, finds what is missing, and does nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from pipeline.base.config import AnnotateConfig
from pipeline.cli import main as cli
from pipeline.corpus.files import find_files
from pipeline.storage.manifest import begin
from tests.pipeline.finetuning.inputs import rows, write
from tests.pipeline.report.run_folders import whole_run

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[4]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the demo's files, read through a link."""
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Exit code, output and message of a dry run; it must have changed nothing."""

    def dry_run(*argv: str) -> tuple[int, str, str]:
        before = state(folder)
        code = cli.main([*argv, "--dry-run"])
        assert state(folder) == before
        assert not ray.is_initialized()
        said = capsys.readouterr()
        return code, said.out, said.err

    return dry_run


def state(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def entry(out: str, name: str) -> str:
    """What stands behind a name in the output."""
    return next(line.split(name, 1)[1].strip() for line in out.splitlines() if line.strip().startswith(name))


def test_annotate_says_files_bytes_tools_thresholds_and_actors(run: Run) -> None:
    code, out, _ = run("annotate")
    assert code == 0
    files = [path for path in (ROOT / "demo" / "pages").iterdir() if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    assert entry(out, "corpus") == f"demo/pages: {len(files)} files, {size / 1000:.1f} kB"
    assert entry(out, "model").startswith("demo/models/annotator: 5 files, ")
    assert entry(out, "annotate").startswith("2 actors, 0 GPUs and 1 CPUs each; model demo/models/annotator")
    assert "tau_s 0, k 5, m 5, tau_f 0.5" in out
    assert entry(out, "runs/demo/annotations") == "new"
    assert "nothing is missing" in out


def test_all_that_is_missing_is_said_at_once(run: Run) -> None:
    code, out, err = run(
        "annotate", "--recipe", "single_gpu", "--corpus", "none.txt", "--model", "./no-model"
    )
    assert code == 2
    assert "none.txt" in out
    assert "model.path './no-model': there is no such folder" in out
    assert "tools.wikisearch.source: WikiSearch has nothing to search" in out
    assert err.strip().endswith("annotate: would not run: 3 problems, named above")


def test_a_model_of_the_hub_is_not_asked_for(run: Run) -> None:
    options = ("--recipe", "single_gpu", "--corpus", "demo/pages", "--tools", "Calculator")
    code, out, _ = run("annotate", *options)
    assert code == 0
    assert entry(out, "model") == "openai-community/gpt2-large: a model of the hub, not looked at"


def begun(config: AnnotateConfig, *, finished: bool) -> None:
    config.output.mkdir(parents=True)
    (config.output / "rows").mkdir()
    manifest = begin(config.output, config, find_files(config.corpus).files)
    manifest.model_copy(update={"state": "finished" if finished else "unfinished"}).write(config.output)


@pytest.mark.parametrize(
    ("finished", "says"),
    [(False, "unfinished with 0 texts, would be resumed"), (True, "finished, nothing to do")],
)
def test_an_output_that_exists(run: Run, folder: Path, finished: bool, says: str) -> None:
    begun(cli.parse("annotate", []).config, finished=finished)
    code, out, _ = run("annotate")
    assert code == 0
    assert entry(out, "runs/demo/annotations") == says
    code, out, _ = run("annotate", "--method.seed", "1")
    assert code == 2
    assert entry(out, "runs/demo/annotations") == "refused"
    assert "Different: method.seed: 0 → 1" in out


def test_an_output_of_something_else_is_refused(run: Run, folder: Path) -> None:
    (folder / "runs" / "demo" / "annotations").mkdir(parents=True)
    (folder / "runs" / "demo" / "annotations" / "thesis.txt").write_text("x", encoding="utf-8")
    code, out, _ = run("annotate")
    assert code == 2
    assert "thesis.txt" in out


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("merge", "`annotate --recipe demo` makes it"),
        ("finetune", "`merge --recipe demo` makes it"),
        ("generate", "`finetune --recipe demo` makes it"),
        ("serve", "`finetune --recipe demo` makes it"),
        ("export", "`merge --recipe demo` makes it"),
        ("thresholds", "`annotate --recipe demo` makes it"),
        ("table", "`evaluate --recipe demo` makes it"),
    ],
)
def test_the_step_that_makes_what_is_missing(run: Run, command: str, says: str) -> None:
    code, out, _ = run(command)
    assert code == 2
    assert says in out
    assert not [line for line in out.splitlines() if line != line.rstrip()]


def test_merge_of_an_unfinished_annotation(run: Run) -> None:
    begun(cli.parse("annotate", []).config, finished=False)
    code, out, _ = run("merge")
    assert code == 2
    assert "runs/demo/annotations: not finished" in out


def test_finetune_counts_texts_tokens_and_epochs(run: Run, folder: Path) -> None:
    write(folder / "runs" / "demo" / "augmented", [rows(60)])
    code, out, _ = run("finetune", "--recipe", "demo")
    assert code == 0
    assert entry(out, "texts") == "28 to train on, 32 held out, 0 equal to those"
    assert entry(out, "calls") == "Calculator in 28, none in 0"
    assert entry(out, "epochs") == "200 steps of 16 texts of 'text' are 114.29 epochs"
    assert "texts are cut at 256" in entry(out, "tokens")
    assert "with packing" in entry(out, "padding")
    _, out, _ = run("finetune", "--recipe", "demo", "--tokens", "kept")
    assert entry(out, "kept") == "keeps the tokens of C*"
    code, out, _ = run("finetune", "--recipe", "demo", "--batch-size", "64")
    assert code == 2
    assert "60 texts leave 28 to train on" in out


def test_evaluate_counts_its_questions(run: Run) -> None:
    options = ("--model", "demo/models/annotator", "--benchmarks", "demo/questions/qa.jsonl")
    code, out, _ = run("evaluate", *options, "--label", "base")
    assert code == 0
    lines = (ROOT / "demo" / "questions" / "qa.jsonl").read_text(encoding="utf-8").count("\n")
    assert entry(out, "questions") == f"qa: {lines}"
    assert entry(out, "base") == "demo/models/annotator, k 10, in this process"
    code, out, _ = run("evaluate", *options, "dateset=0")
    assert code == 0
    assert "dateset: 9,400" in out
    code, out, _ = run("evaluate", "--model", "demo/models/annotator", "--benchmarks", "none.jsonl")
    assert code == 2
    assert "none.jsonl" in out


def test_demo_says_which_steps_are_finished(run: Run, folder: Path) -> None:
    code, out, _ = run("demo")
    assert code == 0
    assert entry(out, "finetune on plain texts") == "would run"
    assert entry(out, "runs/demo/model-plain") == "new"
    (folder / "runs" / "demo").mkdir(parents=True)
    (folder / "runs" / "demo" / "steps.json").write_text(json.dumps([]), encoding="utf-8")
    code, out, _ = run("demo")
    assert code == 2
    assert "is not a cache of steps" in out


def test_the_demos_files_are_missing_elsewhere(run: Run, folder: Path) -> None:
    (folder / "demo").unlink()
    code, out, _ = run("annotate")
    assert code == 2
    assert "needs a checkout of the repository" in out


@pytest.mark.parametrize(
    "argv",
    [
        ("plan",),
        ("try", "--tool", "Calculator"),
        ("generate", "--model", "demo/models/annotator"),
        ("serve", "--model", "demo/models/annotator"),
        ("harness", "--model", "demo/models/annotator"),
        ("score", "lines.jsonl"),
        ("sweep", "--model", "demo/models/annotator"),
        ("scaling", "--models", "a=demo/models/annotator"),
    ],
)
def test_the_other_commands(run: Run, folder: Path, argv: tuple[str, ...]) -> None:
    shutil.copy(ROOT / "demo" / "questions" / "qa.jsonl", folder / "lines.jsonl")
    code, out, err = run(*argv)
    assert (code, err) == (0, "")
    assert "demo/models/annotator: 5 files" in out


@pytest.mark.parametrize("command", ["report", "status"])
def test_report_and_status_name_the_outputs_of_a_folder(run: Run, folder: Path, command: str) -> None:
    whole_run(folder / "mine")
    code, out, err = run(command, "mine")
    assert (code, err) == (0, "")
    assert entry(out, "C*") == "mine/augmented"
    assert entry(out, "evaluations") == "mine/evaluation.json"
    assert ("mine/report.html  new" in out) == (command == "report")
    (folder / "mine" / "report.html").write_text("<html>of a user</html>")
    code, out, _ = run(command, "mine")
    assert (code, "is not a report" in out) == ((2, True) if command == "report" else (0, False))
