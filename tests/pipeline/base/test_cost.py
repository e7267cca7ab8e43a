"""The least work against plain sets of distinct contexts; FLOPs by hand; the forecast."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import pytest

from bench.fixtures.small_models import ARCHITECTURES, causal_lm
from pipeline.base.cost import (
    Expected,
    ModelShape,
    PromptLayout,
    forecast,
    lower_bound_decode,
    lower_bound_positions,
    lower_bound_scoring,
)
from pipeline.base.records import Cost
from pipeline.engine.loading import model_shape

pytestmark = pytest.mark.unit

Context = tuple[str, ...]


def named(name: str, size: int) -> Context:
    return tuple(f"{name}{number}" for number in range(size))


PROMPT, TEXT, SUFFIX = named("p", 7), named("x", 5), named("s", 2)
DRAWS = {
    0: [(1, 2, 3), (1, 2, 3), (1, 2, 4, 5), (9,)],
    3: [(1, 2, 3), (1, 2), (6, 7, 8)],
    4: [(1,)],
}


def contexts_of_positions(api: Context) -> set[Context]:
    behind = PROMPT + TEXT + SUFFIX
    return {behind + TEXT[:i] + api[:j] for i in range(len(TEXT)) for j in range(len(api))}


def contexts_of_draws(api: Context) -> set[Context]:
    behind = PROMPT + TEXT + SUFFIX
    return {
        (*behind, *TEXT[:i], *api, *map(str, draw[:t]))
        for i, draws in DRAWS.items()
        for draw in draws
        for t in range(len(draw))
    }


def cost_of(asked: set[Context], known: Iterable[Context] = ((),)) -> Cost:
    """Every token that ends a beginning of some context is run once, and sees that beginning."""
    had = set(chain.from_iterable(beginnings(context) for context in known))
    new = set(chain.from_iterable(beginnings(context) for context in asked)) - had
    return Cost(len(new), attention_pairs=sum(map(len, new)), logits=len(asked))


def beginnings(context: Context) -> set[Context]:
    return {context[:size] for size in range(1, len(context) + 1)}


@pytest.mark.parametrize("api", [named("a", 1), named("a", 3)])
def test_the_least_sampling_is_the_set_of_distinct_contexts(api: Context) -> None:
    layout = PromptLayout(len(PROMPT), len(TEXT), len(SUFFIX), len(api))
    positions, draws = contexts_of_positions(api), contexts_of_draws(api)
    assert lower_bound_positions(layout) == cost_of(positions, [PROMPT])
    assert lower_bound_decode(layout, DRAWS) == cost_of(draws, positions)


def test_the_least_scoring_is_the_set_of_distinct_contexts_over_all_phases() -> None:
    """Tools whose calls begin alike share that; an equal sequence, and one that is a beginning, are free."""
    sequences = [
        (0, *range(50, 58)),
        (0, 1, 2, 3, 4, *range(50, 56)),
        (0, 1, 2, 3, 5, *range(50, 58)),
        (0, 1, 2, 3, 4, *range(50, 55)),
        (0, 1, 2, 6, *range(50, 58)),
        (0, 1, 2, 3, 4, *range(50, 56)),
    ]
    asked: list[Context] = []
    for ids, cost in zip(sequences, lower_bound_scoring(sequences, [5] * 6), strict=True):
        whole = tuple(map(str, ids[:-1]))
        expected = cost_of({whole}, asked)
        assert (cost.tokens, cost.attention_pairs, cost.logits) == (
            expected.tokens,
            expected.attention_pairs,
            5,
        )
        asked.append(whole)


def test_a_forecast_of_what_happened_is_what_happened() -> None:
    """Where all texts and draws are alike, averages lose nothing."""
    layout = PromptLayout(7, 5, 2, 3)
    draws = {i: [(10 * j, 1, 2, 3) for j in range(4)] for i in (1, 2, 3)}
    x, calls = list(range(50, 55)), 6
    plus = [[0, 1, 100 + c, 7, 8, *x] for c in range(calls)]
    call = [[0, 1, 200 + c, 7, *x] for c in range(calls)]
    scored = lower_bound_scoring([[0, *x], *plus, *call], [5] * (1 + 2 * calls))
    expected = Expected(
        prompt=7, n=5, suffix=2, api=3, positions=3, draws=4, draw=4, calls=calls, plus=5, call=4, reach=5
    )
    found = forecast(expected)
    assert found["positions"] == lower_bound_positions(layout)
    assert found["decode"] == lower_bound_decode(layout, draws)
    # What is shared, BOS and a token, is foreseen as a size; that some sequence has it first is not.
    shared = forecast(expected.__class__(**{**fields(expected), "shared": 2}))
    assert shared["call"] == sum(scored[1 + calls :], Cost())
    assert shared["plus"].logits == sum(scored[1 : 1 + calls], Cost()).logits


def fields(expected: Expected) -> dict[str, float]:
    return {name: getattr(expected, name) for name in Expected.__slots__}


def test_nothing_drawn_or_scored_is_forecast_to_cost_nothing() -> None:
    found = forecast(
        Expected(prompt=7, n=5, suffix=2, positions=0, draws=4, draw=4, calls=0, plus=5, call=4, reach=5)
    )
    assert found["positions"].tokens == 11
    assert {phase for phase, cost in found.items() if cost != Cost()} == {"positions"}


def test_flops_by_hand() -> None:
    """Two layers of 64 with three MLP matrices of 96; two of the four heads have keys and values."""
    shape = ModelShape.of(causal_lm("llama", 420))
    assert shape.parameters == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
    assert (shape.layers, shape.heads, shape.head_size, shape.hidden, shape.vocabulary) == (2, 4, 16, 64, 420)
    cost = Cost(tokens=10, padding=2, attention_pairs=55, logits=3)
    assert shape.flops(cost) == 2 * 12 * shape.parameters + 4 * 55 * 2 * 64 + 2 * 3 * 64 * 420


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_shape_is_read_without_the_weights(architecture: str, tmp_path: Path) -> None:
    model = causal_lm(architecture, 420)
    model.config.save_pretrained(tmp_path)
    assert model_shape(str(tmp_path)) == ModelShape.of(model)
    blocks = [weight for name, weight in model.named_parameters() if ".h." in name or ".layers." in name]
    assert ModelShape.of(model).parameters == sum(weight.numel() for weight in blocks if weight.dim() == 2)


def test_planning_needs_no_torch() -> None:
    code = "import sys, pipeline.planning; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
