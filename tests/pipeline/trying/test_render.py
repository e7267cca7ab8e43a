"""What a reader sees: marks before the right words, every stage, no escape sequences, lines that fit."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from pipeline.base.config import MethodConfig
from pipeline.base.records import Annotation, Call, Document, Text
from pipeline.method.selection import Selection
from pipeline.trying.render import summary_view, trial_view
from pipeline.trying.scan import Scan
from pipeline.trying.summary import Summary
from pipeline.trying.trial import Draw, Position, Trial
from tools_service.contract.spec import ToolMethod

pytestmark = pytest.mark.unit

SETTINGS = ToolMethod(tau_s=0.05, k=2, m=5, tau_f=0.5)
TEXT = "The farm had 48 hens and bought 67. Now it has 115."


def call(position: int, call_input: str, result: str, gain: float) -> Call:
    return Call("Calculator", position, 0.5, call_input, result, 1.0, 1.0 + gain, 2.0 + gain, gain)


def scored(count: int, of: Call) -> Draw:
    return Draw(of.input, count, of.input, of.result, of, kept=of.gain >= SETTINGS.tau_f)


def trial(text: str = TEXT, *, draws: tuple[Draw, ...] = (), selected: bool = True) -> Trial:
    kept, other = call(46, "48 + 67", "115", 1.25), call(46, "48 - 67", "-19", -0.5)
    own = (
        scored(3, kept),
        scored(1, other),
        Draw("QA(", 1, lost="wrong_tool"),
        *draws,
    )
    record = Text(1, Document("mine.jsonl#1"), text)
    return Trial(
        Selection("a result announced", True) if selected else Selection("no: fewer numbers", False),
        Annotation(record, "annotated", calls=(kept, other)),
        (0.5, 0.01, 0.001),
        (Position(1, 46, 0.5, True, own), Position(2, 12, 0.01, False, ())),
    )


def printed(view: RenderableType, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(view, highlight=False)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_text_shows_every_stage() -> None:
    shown = printed(trial_view(2, 7, trial(), "Calculator", SETTINGS))
    assert "text 2 of 7 · mine.jsonl#1" in shown
    assert "selected: a result announced" in shown
    assert "The farm had «2»48 hens and bought 67. Now it has «1»115." in shown
    assert "p(<API>) > tau_s = 0.05 at 1 of 3 positions; below 0.0100 tau_s admits k = 2" in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["3", "x", "+1.25", "2.25", "1.00", "3.25", "kept", "48", "+", "67", "→", "115"] in lines
    assert ["1", "x", "-0.50", "0.50", "1.00", "1.50", "48", "-", "67", "→", "-19"] in lines
    assert ["1", "x", "wrong_tool", "QA("] in lines
    assert any("not above tau_s" in line for line in shown.splitlines())
    assert "kept: The farm had 48 hens and bought 67. Now it has [Calculator(48 + 67) -> 115] 115." in shown


def test_the_best_call_is_shown_where_none_is_kept() -> None:
    strict = SETTINGS.model_copy(update={"tau_f": 2.0})
    shown = printed(trial_view(1, 1, trial(), "Calculator", strict), 140)
    assert "best call, not kept: The farm had" in shown
    assert "[Calculator(48 + 67) -> 115] 115." in shown


def test_a_typed_text_says_that_it_was_not_selected() -> None:
    shown = printed(trial_view(1, 1, trial(selected=False), "Calculator", SETTINGS))
    assert "not selected: fewer numbers; tried all the same" in shown


def test_a_failed_text_says_why() -> None:
    record = Text(1, Document("mine.jsonl#1"), TEXT)
    failed = Trial(Selection("all", True), Annotation(record, "failed", "OSError: gone"))
    assert "failed: OSError: gone" in printed(trial_view(1, 1, failed, "Calculator", SETTINGS))


def test_equal_reasons_share_a_line_unless_all_draws_are_asked_for() -> None:
    more = tuple(Draw(f"Wiki{n}", 1, lost="wrong_tool") for n in range(4))
    short = printed(trial_view(1, 1, trial(draws=more), "Calculator", SETTINGS), 140)
    assert "5 x wrong_tool QA( | Wiki0 | Wiki1 | 2 more" in " ".join(short.split())
    every = printed(trial_view(1, 1, trial(draws=more), "Calculator", SETTINGS, all_draws=True), 140)
    assert all(f"1 x wrong_tool Wiki{n}" in " ".join(every.split()) for n in range(4))


@pytest.mark.parametrize("width", [80, 120])
def test_lines_fit_the_terminal_and_long_texts_are_cut_round_the_marks(width: int) -> None:
    long = "Nothing happened on that day. " * 40
    shown = printed(trial_view(1, 1, trial(TEXT + " " + long), "Calculator", SETTINGS), width)
    assert max(map(len, shown.splitlines())) <= width
    assert shown.count("Nothing happened") < 10
    assert "«1»115." in shown


def test_strangers_strings_cannot_move_the_cursor() -> None:
    hostile = "\x1b[2Jred"
    draw = Draw(hostile, 1, lost="wrong_tool")
    shown = printed(trial_view(1, 1, trial(TEXT + hostile + "\n", draws=(draw,)), "Calculator", SETTINGS))
    assert "\x1b" not in shown
    assert r"\x1b[2Jred" in shown


def test_the_summary_has_the_funnel_the_thresholds_and_advice(
    trials: list[Trial], method: MethodConfig
) -> None:
    scan = Scan([(trial.annotation.text, trial.selection) for trial in trials], 8, {"no URL": 2})
    settings = method.of("Calculator")
    shown = printed(summary_view(Summary.of(trials, scan, settings), "Calculator", 3.2))
    assert "summary · 6 texts in 3 s" in shown
    assert ["texts", "selected", "8", "6", "75%", "2", "x", "no", "URL"] in [
        line.split() for line in shown.splitlines()
    ]
    assert "-0.5 *" in shown
    assert "! Largest loss before the filter: " in shown


def test_a_summary_without_a_single_position_can_be_shown(method: MethodConfig) -> None:
    none = [
        replace(trial(), annotation=Annotation(Text(1, Document("a#1"), "x"), "failed", "E: e"), p_api=())
    ]
    shown = printed(summary_view(Summary.of(none, Scan([], 1), SETTINGS), "Calculator", 0.0))
    assert "1 of 1 texts failed: E: e" in shown
