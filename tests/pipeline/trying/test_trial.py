"""A trial has the numbers of annotate to the last bit, and accounts for every position and draw."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from bench.fixtures import small_run
from pipeline.base.config import MethodConfig
from pipeline.base.records import Annotation, Call, Document, Text
from pipeline.method.annotator import Annotator
from pipeline.method.filtering import kept
from pipeline.method.selection import Selection
from pipeline.trying.trial import MIN_POSITIONS, Trial, try_text
from tools_service.config import ToolsConfig
from tools_service.contract.tool import ToolInput, ToolResult
from tools_service.syntax.prompts import load_prompt
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def rows(method: MethodConfig, tools: LocalTools) -> list[Annotation]:
    annotator = Annotator(small_run.annotator_model(), tools, method)
    return [annotation for text in small_run.texts(6) for annotation in annotator.annotate([text])]


def without_l_call(call: Call) -> Call:
    return replace(call, l_call=None, gain=call.l_empty - call.l_plus)


def test_calls_are_those_of_annotate_bit_for_bit(trials: list[Trial], rows: list[Annotation]) -> None:
    left_out = computed = 0
    for trial, row in zip(trials, rows, strict=True):
        assert trial.annotation.text == row.text
        for tried, annotated in zip(trial.annotation.calls, row.calls, strict=True):
            assert tried.l_call is not None
            assert tried.gain == min(tried.l_empty, tried.l_call) - tried.l_plus
            left_out += annotated.l_call is None
            computed += annotated.l_call is not None
            assert (without_l_call(tried) if annotated.l_call is None else tried) == annotated
    assert min(left_out, computed) > 0, "the threshold divides the calls, or this test says little"


def test_the_funnel_and_the_kept_calls_are_those_of_annotate(
    trials: list[Trial], rows: list[Annotation], method: MethodConfig
) -> None:
    tau_f = method.of("Calculator").tau_f
    assert [trial.annotation.funnel for trial in trials] == [row.funnel for row in rows]
    assert [trial.kept(tau_f) for trial in trials] == [
        [call for call in row.calls if kept(call, tau_f)] for row in rows
    ]
    assert any(trial.kept(tau_f) for trial in trials)


def test_every_draw_is_a_scored_call_or_has_its_reason(trials: list[Trial], method: MethodConfig) -> None:
    settings = method.of("Calculator")
    for trial in trials:
        [funnel] = trial.annotation.funnel
        chosen = [position for position in trial.positions if position.chosen]
        assert len(chosen) == funnel.positions == settings.k
        assert all(sum(draw.count for draw in position.draws) == settings.m for position in chosen)
        draws = [draw for position in chosen for draw in position.draws]
        lost = Counter[str]()
        for draw in draws:
            assert (draw.lost is None) == (draw.call is not None)
            if draw.lost is not None:
                lost[draw.lost] += draw.count if draw.input is None else 1
        assert dict(lost) == funnel.discarded
        assert {draw.call for draw in draws if draw.call is not None} == set(trial.annotation.calls)
    reasons = {draw.lost for trial in trials for position in trial.positions for draw in position.draws}
    assert len(reasons) > 1, "some draws are no calls, or this test says little"


def test_positions_stand_by_probability_and_the_likeliest_are_there_without_a_call(
    tools: LocalTools, method: MethodConfig
) -> None:
    model = small_run.annotator_model()
    prompt = load_prompt("Calculator", method.prompts, None)
    none_passes = method.with_section("Calculator", method.of("Calculator").model_copy(update={"tau_s": 1.0}))
    [text] = small_run.texts(1)
    trial = try_text(model, tools, prompt, none_passes, text, Selection("every text", True))
    assert trial.failed is None
    assert list(trial.p_api) == sorted(trial.p_api, reverse=True)
    assert [(p.rank, p.p_api) for p in trial.positions] == [
        (rank + 1, trial.p_api[rank]) for rank in range(MIN_POSITIONS)
    ]
    assert not any(position.chosen or position.draws for position in trial.positions)


def test_a_text_too_long_for_the_model_has_failed_with_the_reason(
    tools: LocalTools, method: MethodConfig
) -> None:
    prompt = load_prompt("Calculator", method.prompts, None)
    text = Text(1, Document("a#1"), "8 and 9 is 17. " * 200)
    trial = try_text(small_run.annotator_model(), tools, prompt, method, text, Selection("every text", True))
    assert trial.failed is not None
    assert trial.failed.startswith("context: the text has")
    assert trial.positions == ()


def test_a_tool_without_a_result_is_named_at_the_call(method: MethodConfig) -> None:
    class Broken:
        name = "Calculator"

        def __call__(self, inputs: list[ToolInput]) -> list[ToolResult]:
            return [ToolResult(reason="closed today")] * len(inputs)

    tools = LocalTools({"Calculator": Broken()}, ToolsConfig())
    prompt = load_prompt("Calculator", method.prompts, None)
    [text] = small_run.texts(1)
    trial = try_text(small_run.annotator_model(), tools, prompt, method, text, Selection("every text", True))
    calls = [draw for position in trial.positions for draw in position.draws if draw.input is not None]
    assert calls
    assert {draw.lost for draw in calls} == {"tool: closed today"}
    assert trial.annotation.calls == ()
