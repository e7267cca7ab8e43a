"""Calls to be read: which are chosen, whatever the order of the rows, and what of their texts is shown."""

from __future__ import annotations

import random

import pytest

from pipeline.base.records import Annotation, Call
from pipeline.report.html import calls_in_context
from pipeline.report.html.calls_in_context import WINDOW, ContextCalls
from pipeline.report.html.data import CallInContext, TextInContext
from pipeline.report.html.scored_calls import mergeable_calls
from tests.pipeline.augmentation.test_merge import annotated
from tests.pipeline.report.html.test_scored_calls import batch

pytestmark = pytest.mark.unit


def call(position: int, gain: float, tool: str = "QA") -> Call:
    return Call(tool, position, 0.5, f"{gain}", "r", 1.0, 2.0, 9.0, gain)


def shown(
    batches: list[list[Annotation]], tools: tuple[str, ...] = ("QA",)
) -> tuple[tuple[TextInContext, ...], tuple[CallInContext, ...]]:
    contexts = ContextCalls(tools, dict.fromkeys(tools, 1.0))
    for found in batches:
        rows = batch(found)
        contexts.add(rows, mergeable_calls(rows, tools, ()))
    return contexts.contexts()


def test_the_best_the_worst_the_nearest_and_some_at_random_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_in_context, "MAX_PER_CHOICE", 3)
    rng = random.Random(0)
    gains = [number / 10 for number in range(-50, 51)]
    rng.shuffle(gains)
    found = [annotated(rng.getrandbits(63), "a text", call(2, gain)) for gain in gains]
    batches = [found[start : start + 20] for start in range(0, len(found), 20)]
    _, calls = shown(batches)
    chosen = {choice: [c.gain for c in calls if choice in c.chosen] for choice in calls_in_context.CHOICES}
    assert chosen["best"] == [5.0, 4.9, 4.8]
    assert chosen["worst"] == [-4.8, -4.9, -5.0]
    assert chosen["near"] == [1.1, 1.0, 0.9]
    assert len(chosen["random"]) == 3
    assert [c.gain for c in calls] == sorted((c.gain for c in calls), reverse=True)
    assert [c.kept for c in calls] == [c.gain >= 1.0 for c in calls]
    assert shown(batches[::-1]) == shown(batches)


def test_few_calls_are_all_shown_once_with_their_text() -> None:
    text = "Olga 🏙 of Javale"
    found = [annotated(-5, text, call(7, 1.5), call(0, 0.5), call(7, 2.0, "MT")), annotated(6, "none")]
    texts, calls = shown([found], ("QA", "MT"))
    assert [(t.text_id, t.text, t.source, t.left_out_before, t.left_out_after) for t in texts] == [
        ("-5", text, "file#-5", 0, 0)
    ]
    assert [(c.tool, c.position, c.call) for c in calls] == [
        ("QA", 8, " [QA(1.5) -> r]"),  # the emoji is two units of UTF-16
        ("QA", 0, " [QA(0.5) -> r]"),
        ("MT", 8, " [MT(2.0) -> r]"),
    ]
    assert calls[0].chosen == calls_in_context.CHOICES


def test_a_long_text_is_cut_to_a_window_around_each_call() -> None:
    text = "".join(chr(ord("a") + number % 26) for number in range(5 * WINDOW))
    positions = [0, 3 * WINDOW, 5 * WINDOW]
    texts, calls = shown(
        [[annotated(1, text, *(call(p, 9.0 - number) for number, p in enumerate(positions)))]]
    )
    assert len(texts) == len(calls) == 3
    for position, of_call in zip(positions, calls, strict=True):
        window = texts[of_call.text]
        assert len(window.text) == 2 * WINDOW
        assert window.left_out_before + len(window.text) + window.left_out_after == len(text)
        assert text[window.left_out_before :].startswith(window.text)
        assert window.left_out_before + of_call.position == position


def test_many_tools_share_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_in_context, "MAX_SHOWN", 16)
    tools = ("QA", "MT")
    found = [annotated(n, "a text", call(0, n / 7), call(2, n / 9, "MT")) for n in range(40)]
    _, calls = shown([found[:9], found[9:]], tools)
    assert len(calls) <= 16
    assert {c.tool for c in calls} == set(tools)
