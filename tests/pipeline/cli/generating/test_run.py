"""The command `generate` on a scripted model: text, JSON, traces, terminals, failures, wrong inputs."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.generating import run as generating
from pipeline.cli.main import main
from tests.pipeline.inference.test_generator import CALLS, PLAIN, PROMPT, Asks
from tests.pipeline.scripted import ScriptedModel
from tools_service.contract.tool import ToolInput, ToolResult

pytestmark = pytest.mark.unit

ANNOTATED = PROMPT + " [Calculator(27 + 4) -> 31] 31 exactly."
Run = Callable[..., int]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the command on a model that follows `paths`, with tools that answer 31 or `answers`."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def generate(
        *argv: str,
        paths: tuple[str, ...] = (PLAIN, CALLS + " 31 exactly."),
        answers: dict[str, str | None] | None = None,
        tools: Asks | None = None,
        max_positions: int = 2**31,
    ) -> int:
        model = ScriptedModel("words", paths, max_positions)
        monkeypatch.setattr(generating, "load_language_model", lambda config: model)
        monkeypatch.setattr(
            generating, "start_local_tools", lambda config, names: tools or Asks(**(answers or {}))
        )
        monkeypatch.setattr(
            generating, "available_tools", lambda config: set(config.tools.specs) - set(config.tools_off)
        )
        return main(["generate", "--model", str(tmp_path), "--k", "2", *argv])

    return generate


def test_without_a_terminal_a_text_is_the_prompt_and_the_annotated_text(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(PROMPT + " ") == 0
    captured = capsys.readouterr()
    assert captured.out == ANNOTATED + "\n"
    assert captured.err == ""


def test_several_prompts_come_in_their_order(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(f"{PROMPT}\nHe said\n{PROMPT}\n")
    assert run("--file", str(file), paths=(PLAIN, CALLS + " 31 exactly.", "He said| hello.")) == 0
    assert capsys.readouterr().out.splitlines() == [ANNOTATED, "He said hello.", ANNOTATED]


def test_json_has_every_field_of_a_generation(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(PROMPT, "--json") == 0
    line = json.loads(capsys.readouterr().out)
    assert line == {
        "prompt": PROMPT,
        "text": ANNOTATED,
        "calls": [{"tool": "Calculator", "input": "27 + 4", "result": "31", "position": 0}],
        "failed": [],
        "stop_reason": "eos",
        **{name: line[name] for name in ("tokens", "prompt_tokens", "sampled_tokens")},
    }
    assert 0 < line["tokens"] < line["sampled_tokens"]


@pytest.mark.parametrize("tracing", [[], ["--trace"]])
def test_a_failed_call_is_visible(tracing: list[str], run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    answers: dict[str, str | None] = {"27 + 4": None}
    assert run(PROMPT, *tracing, answers=answers) == 0
    captured = capsys.readouterr()
    assert captured.out == PROMPT + " thirty.\n"
    assert (
        "! [Calculator(27 + 4) -> failed: no result from the tool: no_answer] after 'The ans" in captured.err
    )
    assert "! 1 call failed (1 x no_answer)" in captured.err
    assert run(PROMPT, "--json", *tracing, answers=answers) == 0
    captured = capsys.readouterr()
    [failed] = json.loads(captured.out)["failed"]
    assert failed == {"written": "Calculator(27 + 4) ->", "reason": "no_answer", "position": 0}
    assert captured.err == "! 1 call failed (1 x no_answer)\n"


def test_a_trace_is_on_standard_error_or_in_the_json(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(PROMPT, "--trace") == 0
    captured = capsys.readouterr()
    assert captured.out == ANNOTATED + "\n"
    assert "at character 0, <API> ranked 2: Calculator(27 + 4) -> 31 (answered in" in captured.err
    assert run(PROMPT, PROMPT, "--trace", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [[call["rank"] for call in line["trace"]] for line in lines] == [[2], [2]]


@pytest.mark.parametrize("tracing", [[], ["--trace"]])
def test_a_prompt_that_cannot_be_continued_is_refused_alone(
    tracing: list[str], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "He said hello, and so on, and so on." * 4
    options = {"paths": ("He said| hello.",), "max_positions": 40}
    assert run("He said", long, *tracing, **options) == 2
    captured = capsys.readouterr()
    assert captured.out == "He said hello.\n"
    assert "1 of 2 prompts could not be continued, the first because the prompt 'He said" in captured.err
    assert run(long, "He said", "--json", *tracing, **options) == 2
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["text"], first["stop_reason"]) == (None, "refused")
    assert "no room for one more" in first["refused"]
    assert second["text"] == "He said hello."
    assert "refused" not in second


@pytest.mark.parametrize("argv", [[PROMPT], [PROMPT, PROMPT], [PROMPT, PROMPT, "--trace"]])
def test_a_terminal_shows_calls_in_colour(argv: list[str], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert run(*argv) == 0
    prompts = argv.count(PROMPT)
    assert terminal.getvalue().count("\x1b[2m [Calculator(27 + 4) -> \x1b[0m\x1b[32m31\x1b[0m") == prompts
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert run(*argv) == 0
    assert terminal.getvalue() == (ANNOTATED + "\n") * prompts


def test_a_terminal_shows_failed_calls_in_the_text(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert run(PROMPT, answers={"27 + 4": None}) == 0
    shown = " [Calculator(27 + 4) -> failed: no result from the tool: no_answer] thirty.\n"
    assert terminal.getvalue() == PROMPT + shown
    assert capsys.readouterr().err == "! 1 call failed (1 x no_answer)\n"


def test_a_terminal_shows_a_call_before_its_tool_has_answered(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watching(Asks):
        async def acall(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
            for _ in range(2_000):
                if terminal.getvalue().endswith(" [Calculator(27 + 4) -> "):
                    return self.call(tool, inputs)
                await asyncio.sleep(0.01)
            return [ToolResult(reason="the terminal does not show the call")]

    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert run(PROMPT, tools=Watching()) == 0
    assert terminal.getvalue() == ANNOTATED + "\n"


def test_no_color_is_respected(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert run(PROMPT) == 0
    assert "\x1b[3" not in terminal.getvalue()


def test_the_options_of_decoding_reach_it(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    paths = (PLAIN + "\nQ: And", CALLS + " 31 exactly.")
    assert run("--disabled", "--stop", r"\n", PROMPT, paths=paths) == 0
    assert run("--tools-off", "Calculator", "Calendar", "--max-new-tokens", "1", PROMPT, "--json") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == PROMPT + " thirty."
    line: dict[str, Any] = json.loads(second)
    assert (line["calls"], line["stop_reason"]) == ([], "length")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "'runs/demo/model': there is no such model yet; `finetune --recipe demo` makes it"),
        (["--recipe", "paper"], "'runs/paper/model': there is no such model yet; `finetune --recipe paper`"),
        (["--model", "runs/mine"], "`finetune --recipe demo --output runs/mine` makes it"),
        (["--interactive", "--model", "gpt2"], "--interactive takes neither prompts nor --file nor --json"),
    ],
)
def test_a_missing_model_or_a_contradiction_is_one_sentence(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a prompt", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_interactive_needs_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--interactive", "--model", "gpt2"]) == 2
    assert "--interactive needs a terminal; for a pipe, leave it out" in capsys.readouterr().err


def test_with_json_prompts_are_read_from_a_terminal_until_its_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class TypedLines(io.BytesIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(TypedLines(PROMPT.encode())))
    assert run("--json") == 0
    assert json.loads(terminal.getvalue())["text"] == ANNOTATED
    assert "end with Ctrl-D" in capsys.readouterr().err
