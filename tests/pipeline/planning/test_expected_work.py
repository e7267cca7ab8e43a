"""What is expected of a text by hand; many texts at once; what all tools share."""

from __future__ import annotations

import pytest

from pipeline.base.config import MethodConfig, ToolMethod
from pipeline.base.cost import forecast
from pipeline.planning.assumptions import Assumptions, Habit, Overhead, Size
from pipeline.planning.expected_work import Sizes, expected, foresee

pytestmark = pytest.mark.unit

SIZES = Sizes(bos=1, api=2, prompts={"QA": (50, 3), "Calendar": (40, 2)})
HABIT = Habit(
    fill=0.5,
    step=3.0,
    candidates=0.3,
    scored=0.2,
    plus=9.0,
    call=6.0,
    reach=0.6,
    targets=5.0,
    close=0.25,
    texts_kept=0.1,
)
RARE = HABIT.model_copy(update={"fill": 0.001})
METHOD = MethodConfig(tools=("QA", "Calendar"), qa=ToolMethod(k=4, m=7), calendar=ToolMethod(k=4, m=7))


def assumed(qa: Habit, **overheads: Overhead) -> Assumptions:
    return Assumptions(
        source="",
        tools={"QA": qa, "Calendar": RARE},
        overheads=overheads,
        size=Size(text=1, rest=1),
        start_s=0,
    )


def test_a_text_by_hand() -> None:
    """Two positions, seven draws each, a fifth of them scored, five tokens beyond 0.6 of the text."""
    found = expected(100, "QA", SIZES, METHOD.qa, HABIT)
    assert (found.prompt, found.suffix, found.api, found.n) == (50, 3, 2, 100)
    assert (found.positions, found.draws, found.draw) == (2, 7, 4)
    assert found.calls == pytest.approx(2 * 7 * 0.2)
    assert (found.plus, found.call, found.reach) == (10, 7, 65)


def test_a_short_text_has_no_more_positions_and_targets_than_tokens() -> None:
    found = expected(1, "QA", SIZES, METHOD.qa, HABIT.model_copy(update={"fill": 1.0}))
    assert (found.positions, found.reach, found.targets) == (1, 1, 1)


def test_what_is_rare_in_one_text_is_not_lost_over_many() -> None:
    """Of one such text less than half a token is expected; it is rounded for all of them together."""
    one = foresee(30, ["Calendar"], 1, SIZES, METHOD, assumed(HABIT))
    many = foresee(30, ["Calendar"], 10_000, SIZES, METHOD, assumed(HABIT))
    assert one["Calendar", "call"].tokens == 0
    assert many["Calendar", "call"].tokens == pytest.approx(10_000 * 0.004 * 7 * 0.2 * 0.25 * 29, rel=0.01)


def test_all_tools_share_one_forward_of_the_bare_text() -> None:
    """As far as the furthest of them needs it."""
    near = assumed(HABIT.model_copy(update={"reach": 0.1}))
    found = foresee(100, ["QA", "Calendar"], 1, SIZES, METHOD, near)
    assert {phase for tool, phase in found if tool is None} == {"empty"}
    assert not [key for key in found if key[0] is not None and key[1] == "empty"]
    assert found[None, "empty"].tokens == 64
    assert foresee(100, [], 1, SIZES, METHOD, near) == {}


def test_the_engine_adds_by_phase() -> None:
    plain = foresee(100, ["QA"], 10, SIZES, METHOD, assumed(HABIT))
    more = foresee(
        100,
        ["QA"],
        10,
        SIZES,
        METHOD,
        assumed(HABIT, plus=Overhead(tokens=1.5, padding=0.1, attention_pairs=2)),
    )
    least, run = plain["QA", "plus"], more["QA", "plus"]
    assert run.tokens == pytest.approx(1.5 * least.tokens, abs=1)
    assert run.padding == pytest.approx(0.15 * least.tokens, abs=1)
    assert run.attention_pairs == pytest.approx(2 * least.attention_pairs, abs=1)
    assert (
        more["QA", "call"]
        == plain["QA", "call"]
        == forecast(expected(100, "QA", SIZES, METHOD.qa, HABIT), 10)["call"]
    )
