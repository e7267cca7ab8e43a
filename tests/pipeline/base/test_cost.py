"""The lower bound against plain sets of distinct contexts; FLOPs by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from random import Random

import pytest

from bench.fixtures.small_models import ARCHITECTURES, causal_lm
from pipeline.base.cost import (
    ModelShape,
    PromptLayout,
    lower_bound_decode,
    lower_bound_positions,
    lower_bound_scoring,
    shared_lengths,
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
    """Every token that ends a prefix of some context runs once, and attends to that prefix."""
    had = set(chain.from_iterable(prefixes(context) for context in known))
    new = set(chain.from_iterable(prefixes(context) for context in asked)) - had
    return Cost(len(new), attention_pairs=sum(map(len, new)), logits=len(asked))


def prefixes(context: Context) -> set[Context]:
    return {context[:size] for size in range(1, len(context) + 1)}


@pytest.mark.parametrize("api", [named("a", 1), named("a", 3)])
def test_the_lower_bound_sampling_is_the_set_of_distinct_contexts(api: Context) -> None:
    layout = PromptLayout(len(PROMPT), len(TEXT), len(SUFFIX), len(api))
    positions, draws = contexts_of_positions(api), contexts_of_draws(api)
    assert lower_bound_positions(layout) == cost_of(positions, [PROMPT])
    assert lower_bound_decode(layout, DRAWS) == cost_of(draws, positions)


def test_the_lower_bound_of_draws_given_a_name_has_the_beginnings_that_ran() -> None:
    """Some draws follow a beginning; what no draw follows ran as well."""
    api = named("a", 2)
    names = {0: [(1,), (1, 2), (7,), (7, 8)], 4: [(2,)]}
    behind = PROMPT + TEXT + SUFFIX
    ran = {(*behind, *TEXT[:i], *api, *map(str, one)) for i, ones in names.items() for one in ones}
    layout = PromptLayout(len(PROMPT), len(TEXT), len(SUFFIX), len(api))
    expected = cost_of(contexts_of_draws(api) | ran, contexts_of_positions(api))
    assert lower_bound_decode(layout, DRAWS, names) == expected


def test_the_lower_bound_scoring_is_the_set_of_distinct_contexts_over_all_phases() -> None:
    """Calls of any tool share a common prefix; an equal sequence, and one that is a prefix, are free."""
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


def common_length(first: list[int], second: list[int]) -> int:
    return max(size for size in range(len(first) + 1) if first[:size] == second[:size])


def test_shared_lengths_are_those_of_the_longest_common_prefix() -> None:
    random = Random(5)
    for _ in range(200):
        sequences = [
            [random.randrange(3) for _ in range(random.randrange(7))] for _ in range(random.randrange(9))
        ]
        expected = [
            max((common_length(earlier, ids) for earlier in sequences[:number]), default=0)
            for number, ids in enumerate(sequences)
        ]
        assert shared_lengths(sequences) == expected


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


def test_the_cost_model_needs_no_torch() -> None:
    code = "import sys, pipeline.base.cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
