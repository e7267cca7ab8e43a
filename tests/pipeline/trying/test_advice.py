"""The largest loss is named, with what to change."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from pipeline.trying.advice import advice
from pipeline.trying.scan import Scan
from pipeline.trying.summary import Stage, Summary
from tools_service.contract.spec import ToolMethod

pytestmark = pytest.mark.unit

SETTINGS = ToolMethod(tau_s=0.05, k=5, m=5, tau_f=1.0)


def stage(name: str, entered: int, left: int, reason: str = "") -> Stage:
    return Stage(name, entered, left, {reason: entered - left} if left < entered else {})


SOUND = Summary(
    settings=SETTINGS,
    scan=Scan([], 30),
    texts=20,
    failed={},
    selected=stage("texts selected", 30, 20, "no URL"),
    located=stage("texts with a position", 20, 20),
    well_formed=stage("draws that are calls", 500, 480, "too_long"),
    answered=stage("calls with a result", 100, 98, "tool: no"),
    scored=stage("calls scored", 98, 98),
    kept=stage("calls kept", 98, 20, "gain below tau_f"),
    texts_kept=stage("texts with a kept call", 20, 12, "no kept call"),
    gains=(-1.0, 0.2, 3.0),
    best_gains=(0.2, *(1.5,) * 12),
    best_p_api=(0.9,) * 20,
    full=0,
    kept_at_last=0,
    kept_drawn_once=0,
)


def said(**changes: object) -> str:
    return "\n".join(advice(replace(SOUND, **changes), "Units"))  # type: ignore[arg-type]


def test_a_sound_try_has_no_large_loss() -> None:
    assert said() == (
        "No stage before the filter loses more than 10%\nThe filter: 20 of 98 calls reach tau_f = 1"
    )


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        (
            "wrong_tool",
            "62% of the draws name another tool or none: try --given-name, or show more calls",
        ),
        ("too_long", "62% of the draws are not closed after 60 tokens: .*--method.units.max-call-tokens"),
        ("arrow", "62% of the draws already have a result"),
        ("bracket", r"62% of the draws are malformed \(bracket\)"),
    ],
)
def test_malformed_draws_are_named_by_their_main_reason(reason: str, hint: str) -> None:
    found = said(well_formed=Stage("draws that are calls", 500, 150, {reason: 310, "newline": 40}))
    assert re.search(f"Largest loss before the filter: {hint}", found)


def test_a_second_large_loss_is_named_too() -> None:
    found = said(
        well_formed=stage("draws that are calls", 100, 30, "wrong_tool"),
        answered=stage("calls with a result", 30, 3, "tool: unknown unit"),
    ).splitlines()
    assert found[0].startswith("Largest loss before the filter: 27 of 30 calls have no result")
    assert found[1].startswith("Another large loss: 70% of the draws name another tool")


def test_given_name_is_not_advised_where_it_is_on() -> None:
    settings = SETTINGS.model_copy(update={"given_name": True})
    found = said(well_formed=stage("draws that are calls", 10, 1, "wrong_tool"), settings=settings)
    assert "--given-name" not in found


def test_without_positions_a_lower_tau_s_is_named_that_helps_half_of_the_texts() -> None:
    found = said(
        located=stage("texts with a position", 20, 16), best_p_api=(*(0.5,) * 16, 0.04, 0.03, 0.002, 0.001)
    )
    assert (
        "4 of 20 texts have no position with p(<API>) > tau_s = 0.05. A --tau-s below 0.03 gives half"
        in found
    )


def test_calls_without_result_name_the_tools_reason() -> None:
    found = said(answered=stage("calls with a result", 100, 40, "tool: unknown unit"))
    assert "60 of 100 calls have no result (unknown unit): show inputs in the prompt" in found
    found = said(answered=stage("calls with a result", 100, 40, "tool: deadline"))
    assert "`toolformer-tools call Units`" in found


def test_calls_without_score_name_the_rule() -> None:
    found = said(scored=stage("calls scored", 98, 10, "input_only_after_position"))
    assert "88 of 98 calls have a result but no score (input_only_after_position): show" in found


def test_the_filter_names_the_lower_threshold_that_keeps_more() -> None:
    found = said(
        kept=stage("calls kept", 98, 0, "gain below tau_f"),
        texts_kept=stage("texts with a kept call", 20, 0),
        gains=(-1.0, 0.62),
        best_gains=(0.62, 0.55),
    )
    assert (
        "0 of 98 calls reach tau_f = 1, the largest gain is 0.62; --tau-f 0.5 keeps a call in 2 texts"
        in found
    )
    assert "no result makes what follows easier" in said(gains=(-1.0, -0.1), best_gains=(-0.1,))


def test_few_selected_texts_failures_and_full_positions_are_named() -> None:
    assert "Only 5 of 1,000 texts are selected (995 x no URL)" in said(
        selected=stage("texts selected", 1000, 5, "no URL")
    )
    assert "2 of 20 texts failed: OSError: gone" in said(failed={"OSError: gone": 2})
    assert "a larger --k may find more" in said(full=15, kept_at_last=3)
    assert "11 of 20 kept calls were drawn once in m = 5: a larger --m" in said(kept_drawn_once=11)
