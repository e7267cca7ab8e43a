"""The expected work of a text by hand; exactness where all texts and draws are alike; many texts at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from pipeline.base.config import MethodConfig
from pipeline.base.cost import PromptLayout, lower_bound_decode, lower_bound_positions, lower_bound_scoring
from pipeline.base.records import Cost
from pipeline.planning.assumptions import Assumptions, Overhead, ToolStatistics
from pipeline.planning.expected_work import PromptSizes, WorkKey, estimate_work
from tools_service.contract.spec import ToolMethod

pytestmark = pytest.mark.unit

SIZES = PromptSizes(bos=1, api=2, prompts={"QA": (50, 3), "Calendar": (40, 2)})
STATISTICS = ToolStatistics(
    positions=0.5,
    draw=3.0,
    candidates=0.3,
    scored=0.2,
    plus=9.0,
    call=6.0,
    last_position=0.6,
    targets=5.0,
    needs_call=0.25,
    texts_kept=0.1,
)
RARE = replace(STATISTICS, positions=0.001)
METHOD = MethodConfig(tools=("QA", "Calendar"), qa=ToolMethod(k=4, m=7), calendar=ToolMethod(k=4, m=7))


def assumed(qa: ToolStatistics, **overheads: Overhead) -> Assumptions:
    return Assumptions(
        source="",
        tools={"QA": qa, "Calendar": RARE},
        overheads=overheads,
        bytes_per_character=1,
        bytes_per_text=1,
        start_s=0,
    )


def estimated(
    n: int,
    tools: tuple[str, ...],
    texts: int,
    assumptions: Assumptions,
    sizes: PromptSizes = SIZES,
    method: MethodConfig = METHOD,
) -> dict[WorkKey, Cost]:
    return estimate_work(Counter({(n, tools): texts}), 1.0, sizes, method, assumptions)


def test_a_text_by_hand() -> None:
    """Two positions, seven draws each, a fifth of them scored, five tokens beyond 0.6 of the text."""
    work = estimated(100, ("QA",), 10, assumed(STATISTICS))
    calls = 2 * 7 * 0.2
    # The text twice and the suffix, without the last token; the first token of <API> at each position.
    context = sum(range(51, 50 + 202 + 1))
    first = sum(50 + 100 + 3 + position + 1 for position in range(100))
    assert work["QA", "positions"] == Cost(10 * 302, 0, 10 * (context + first), 10 * 200)
    # The last token of <API> after 153 + 49.5 + 1 others, then 3 tokens for each draw.
    decoded = 2 + 2 * 7 * 3
    pairs = 2 * 204.5 + (decoded - 2) * (204.5 + 2)
    assert work["QA", "decode"] == Cost(10 * decoded, 0, round(10 * pairs), 10 * decoded)
    plus, call = 10 + 65 - 1, 7 + 65 - 1
    assert work["QA", "plus"].tokens == round(10 * calls * plus)
    assert work["QA", "plus"].attention_pairs == round(10 * calls * plus * (plus + 1) / 2)
    assert work["QA", "plus"].logits == round(10 * calls * 5)
    assert work["QA", "call"].tokens == round(10 * calls * 0.25 * call)
    assert work[None, "empty"] == Cost(10 * 64, 0, 10 * 64 * 65 // 2, 10 * 5)


def test_a_short_text_has_no_more_positions_and_targets_than_tokens() -> None:
    work = estimated(1, ("QA",), 10, assumed(replace(STATISTICS, positions=1.0)))
    assert work["QA", "decode"].tokens == 10 * (1 + 7 * 3)
    assert work["QA", "plus"] == Cost(140, 0, 14 * 55, 14)
    assert work[None, "empty"] == Cost(0, 0, 0, 10)


def test_the_estimate_is_exact_where_all_draws_and_calls_are_alike() -> None:
    """Three positions with four draws of four tokens; six calls that share no prefix; no BOS."""
    sizes = PromptSizes(bos=0, api=3, prompts={"QA": (7, 2)})
    method = MethodConfig(tools=("QA",), qa=ToolMethod(k=3, m=4))
    alike = ToolStatistics(
        positions=1.0,
        draw=3.0,
        candidates=1.0,
        scored=0.5,
        plus=5.0,
        call=4.0,
        last_position=0.0,
        targets=5.0,
        needs_call=1.0,
        texts_kept=1.0,
    )
    x, calls = list(range(50, 55)), 6
    plus = [[100 + c, 1, 7, 8, 9, *x] for c in range(calls)]
    call = [[200 + c, 1, 7, 9, *x] for c in range(calls)]
    scored = lower_bound_scoring([x, *plus, *call], [5] * (1 + 2 * calls))
    layout = PromptLayout(7, 5, 2, 3)
    draws = {i: [(10 * j, 1, 2, 3) for j in range(4)] for i in (1, 2, 3)}
    work = estimated(5, ("QA",), 1, assumed(alike), sizes, method)
    assert work == {
        ("QA", "positions"): lower_bound_positions(layout),
        ("QA", "decode"): lower_bound_decode(layout, draws),
        (None, "empty"): scored[0],
        ("QA", "plus"): sum(scored[1 : 1 + calls], Cost()),
        ("QA", "call"): sum(scored[1 + calls :], Cost()),
    }


def test_without_positions_only_the_positions_phase_costs_anything() -> None:
    work = estimated(5, ("QA",), 1, assumed(replace(STATISTICS, positions=0.0)))
    assert work["QA", "positions"].tokens == 2 * 5 + 3 - 1 + 5
    assert {phase for (_, phase), cost in work.items() if cost != Cost()} == {"positions"}


def test_what_is_rare_in_one_text_is_not_lost_over_many() -> None:
    """One such text is expected to take less than half a token; rounding is for all of them together."""
    one = estimated(30, ("Calendar",), 1, assumed(STATISTICS))
    many = estimated(30, ("Calendar",), 10_000, assumed(STATISTICS))
    assert one["Calendar", "call"].tokens == 0
    assert many["Calendar", "call"].tokens == pytest.approx(10_000 * 0.004 * 7 * 0.2 * 0.25 * 29, rel=0.01)


def test_all_tools_share_one_forward_of_the_bare_text() -> None:
    """It reaches as far as the furthest of the tools needs."""
    near = assumed(replace(STATISTICS, last_position=0.1))
    work = estimated(100, ("QA", "Calendar"), 1, near)
    assert {phase for tool, phase in work if tool is None} == {"empty"}
    assert not [key for key in work if key[0] is not None and key[1] == "empty"]
    assert work[None, "empty"].tokens == 64
    assert estimated(100, (), 1, near) == {}


def test_the_overhead_of_the_engine_applies_by_phase() -> None:
    plain = estimated(100, ("QA",), 10, assumed(STATISTICS))
    overhead = Overhead(tokens=1.5, padding=0.1, attention_pairs=2)
    more = estimated(100, ("QA",), 10, assumed(STATISTICS, plus=overhead))
    lower_bound, run = plain["QA", "plus"], more["QA", "plus"]
    assert run.tokens == pytest.approx(1.5 * lower_bound.tokens, abs=1)
    assert run.padding == pytest.approx(0.15 * lower_bound.tokens, abs=1)
    assert run.attention_pairs == pytest.approx(2 * lower_bound.attention_pairs, abs=1)
    assert more["QA", "call"] == plain["QA", "call"]
