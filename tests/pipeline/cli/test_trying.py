"""The command `try`: what it prints, its JSON lines, its errors, and what an interrupted one still says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.fixtures import small_run
from pipeline.cli.main import main
from pipeline.trying import run as trying_run

pytestmark = pytest.mark.unit

Try = Callable[..., int]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/, prompts/ and pages/."""
    folder: Path = tmp_path_factory.mktemp("world")
    small_run.write_world(folder, pages=6)
    return folder


@pytest.fixture
def try_(world: Path) -> Try:
    def run(*options: str, **changed: Path) -> int:
        paths = {"model": world / "model", "pages": world / "pages", "prompts": world / "prompts"} | changed
        return main(
            [
                *("try", "--recipe", "demo", "--corpus", str(paths["pages"]), "--model", str(paths["model"])),
                *("--method.prompts", str(paths["prompts"]), "--tau-s", "0", "--k", "3", "--m", "4"),
                *("--method.calculator.max-call-tokens", "10", *options),
            ]
        )

    return run


def test_texts_then_the_summary(try_: Try, capsys: pytest.CaptureFixture[str]) -> None:
    assert try_("--tool", "Calculator", "--texts", "2") == 0
    shown = capsys.readouterr().out
    order = ["Calculator with ", "text 1 of 2", "p(<API>)", "text 2 of 2", "summary · 2 texts", "calls kept"]
    places = [shown.index(word) for word in order]
    assert places == sorted(places)
    assert "\x1b" not in shown
    assert not [line for line in shown.splitlines() if line != line.rstrip()]


def test_json_lines_have_the_options_and_every_draw(try_: Try, capsys: pytest.CaptureFixture[str]) -> None:
    assert try_("--tool", "Calculator", "--texts", "2", "--json", "--tau-f", "-9", "--seed", "3") == 0
    lines: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["type"] for line in lines] == ["text", "text", "summary"]
    for line in lines[:2]:
        chosen = [position for position in line["positions"] if position["chosen"]]
        assert [sum(draw["count"] for draw in position["draws"]) for position in chosen] == [4] * 3
        assert all(draw["kept"] == (draw["gain"] is not None) for p in chosen for draw in p["draws"])
    settings = lines[2]["settings"]
    assert (settings["k"], settings["m"], settings["tau_f"], lines[2]["texts"]) == (3, 4, -9.0, 2)


def test_without_prompts_the_text_stands_alone(try_: Try, capsys: pytest.CaptureFixture[str]) -> None:
    assert try_("--tool", "Calculator", "--texts", "1", "--method.no-use-prompts") == 0
    shown = capsys.readouterr().out
    assert "without a prompt" in shown
    assert "calls kept" in shown


def test_given_name_reaches_the_method(try_: Try, capsys: pytest.CaptureFixture[str]) -> None:
    assert try_("--tool", "Calculator", "--texts", "1", "--json", "--given-name") == 0
    text, summary = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert summary["settings"]["given_name"] is True
    draws = [draw for position in text["positions"] for draw in position["draws"]]
    assert all(draw["lost"] != "wrong_tool" for draw in draws)
    assert any(draw["p_name"] is not None for draw in draws)


def test_a_typed_text_needs_no_corpus(try_: Try, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert try_("--tool", "Calculator", "--text", "48 and 67 rolls", pages=tmp_path / "nowhere") == 0
    shown = capsys.readouterr().out
    assert "tried all the same" in shown
    assert "text 1 of 1" in shown


@pytest.mark.parametrize(
    ("options", "changed", "message"),
    [
        ((), {}, "--tool: name the tool to try; there are QA"),
        (("--tool", "calculator"), {}, "--tool: no tool is called calculator; did you mean Calculator?"),
        (("--tool", "Calculator"), {"pages": "nowhere"}, "nowhere"),
        (("--tool", "Calculator"), {"model": "no_model"}, "--model '"),
        (("--tool", "Calculator"), {"prompts": "no_prompts"}, "prompt for Calculator: cannot read"),
        (("--tool", "Calculator", "--k", "0"), {}, "--k"),
        (("--tool", "MT", "--max-scanned", "5"), {"prompts": "mt"}, "none of the 5 texts looked at"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(
    options: tuple[str, ...],
    changed: dict[str, str],
    message: str,
    try_: Try,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mt").mkdir()
    (tmp_path / "mt" / "mt.txt").write_text("Add calls. A [MT(gato)] cat.\n\nInput: {text}\nOutput:")
    assert try_(*options, **{name: tmp_path / value for name, value in changed.items()}) == 2
    captured = capsys.readouterr()
    [error] = [line for line in captured.err.splitlines() if ": --" in line or message in line]
    assert message in error
    assert captured.out == ""


def test_an_interrupted_try_prints_the_summary_of_what_was_done(
    try_: Try, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = trying_run.TryRun.trials

    def interrupted(run: Any) -> Any:
        yield next(trials(run))
        raise KeyboardInterrupt

    monkeypatch.setattr(trying_run.TryRun, "trials", interrupted)
    with pytest.raises(SystemExit) as exit_:
        try_("--tool", "Calculator", "--texts", "4")
    assert exit_.value.code == 130
    captured = capsys.readouterr()
    assert "summary · 1 text in" in captured.out
    assert "interrupted" in captured.err


def test_a_wrong_command_is_refused_before_torch_is_imported() -> None:
    code = (
        "import sys; from pipeline.cli.main import main; code = main(['try', '--tool', 'Nothing']); "
        "sys.exit(9 if 'torch' in sys.modules else code)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 2, finished.stderr
