"""Draws given a name, against all token sequences of a small vocabulary, and against rejection."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from pipeline.engine import name_paths
from pipeline.engine.name_paths import NamePaths
from pipeline.engine.random_streams import stream_keys, uniforms
from pipeline.syntax.grammar import DEAD, opening

pytestmark = pytest.mark.unit

NAME = "Ab("
# The name is one token, or two, or three; the last one may go on into the input. "" writes nothing.
STRINGS = ("x", "A", "b", "(", "Ab", "b(", "Ab(", "(1", "b(2)]", "Ab(3", "(\n", "B", "", "</s>")
OPENING = opening(NAME, STRINGS, [STRINGS.index("</s>")])
MAX_TOKENS = 4


@cache
def distribution(prefix: tuple[int, ...], seed: int) -> np.ndarray:
    """p(token) after the tokens `prefix` [V]: another one for each prefix, with small and large values."""
    rng = np.random.default_rng([seed, len(prefix), *prefix])
    p = rng.gamma(0.3, size=len(STRINGS)) + 1e-6
    p[STRINGS.index("x")] += 1.0
    return np.asarray(p / p.sum())


def exact(prefix: tuple[int, ...], seed: int) -> np.ndarray:
    """p(token, and later the name) [V] after `prefix`, from all token sequences."""
    p, joint = distribution(prefix, seed), np.zeros(len(STRINGS))
    for token, string in enumerate(STRINGS[:-1]):
        written = "".join(STRINGS[t] for t in prefix) + string
        if written.startswith(NAME):
            joint[token] = p[token]
        elif NAME.startswith(written) and len(prefix) + 1 < MAX_TOKENS:
            joint[token] = p[token] * exact((*prefix, token), seed).sum()
    return joint


def exact_draw(u: np.ndarray, seed: int) -> tuple[int, ...]:
    tokens: tuple[int, ...] = ()
    while not "".join(STRINGS[t] for t in tokens).startswith(NAME):
        cdf = exact(tokens, seed).cumsum()
        tokens += (int(np.argmax(cdf > u[len(tokens)] * cdf[-1])),)
    return tokens


def follow(u: np.ndarray, seed: int, max_tokens: int = MAX_TOKENS) -> NamePaths:
    """Run the beginnings that are wanted, until none is."""

    def probabilities(prefix: tuple[int, ...]) -> np.ndarray:
        return np.asarray(distribution(prefix, seed)[OPENING.tokens])

    paths = NamePaths(OPENING, max_tokens, u, probabilities(()))
    while wanted := paths.to_run():
        tokens = [(*paths.prefixes[n].tokens, int(OPENING.tokens[column])) for n, column in wanted]
        paths.add(wanted, np.stack([probabilities(prefix) for prefix in tokens]))
    return paths


def tokens_of(paths: NamePaths) -> list[tuple[int, ...] | None]:
    return [draw and (*paths.prefixes[draw.prefix].tokens, draw.token) for draw in paths.draws]


def numbers(m: int, seed: int = 0) -> np.ndarray:
    """Random numbers [m, MAX_TOKENS]."""
    return uniforms(stream_keys(seed, 1, 2, 3, m)[:, None], np.arange(MAX_TOKENS))


def test_the_opening_lists_the_tokens_that_write_it() -> None:
    def after(state: int, string: str) -> int:
        column = np.flatnonzero(OPENING.tokens == STRINGS.index(string))
        return int(OPENING.next_state[state, column[0]])

    assert [STRINGS[token] for token in OPENING.tokens] == [s for s in STRINGS if s not in ("x", "B", "</s>")]
    assert [after(0, "A"), after(0, "Ab"), after(0, "Ab(3"), after(0, ""), after(0, "b")] == [
        1,
        2,
        3,
        0,
        DEAD,
    ]
    assert [after(2, "("), after(2, "(1"), after(2, "(\n"), after(2, "b")] == [3, 3, 3, DEAD]


@pytest.mark.parametrize("seed", range(12))
def test_draws_and_probability_are_those_of_all_sequences(seed: int) -> None:
    u = numbers(40, seed)
    paths = follow(u, seed)
    assert tokens_of(paths) == [exact_draw(own, seed) for own in u]
    whole = exact((), seed).sum()
    assert whole * (1 - 1.1e-3) <= paths.probability <= whole * (1 + 1e-12)


def test_few_beginnings_run_and_more_where_a_random_number_is_near_a_bound() -> None:
    """Bounds decide most draws; a draw at the edge of what is known needs the beginning behind it."""
    edge = exact((), 1).cumsum()
    u = np.full((1, MAX_TOKENS), 0.5)
    run = []
    for token in OPENING.tokens[:-1]:
        u[0, 0] = np.nextafter(edge[token] / edge[-1], 0)
        paths = follow(u, 1)
        assert tokens_of(paths) == [exact_draw(u[0], 1)]
        run.append(len(paths.prefixes))
    everything = len(follow(numbers(1), 1).prefixes)
    assert max(run) > everything


def test_draws_are_those_that_rejection_keeps() -> None:
    """Two samples of the tokens up to the name, compared by chi-square: 13 sequences or so."""
    seed, m = 3, 4_000
    paths = follow(numbers(m, 100), seed)
    given = tokens_of(paths)
    kept: list[tuple[int, ...]] = []
    for u in numbers(20 * m, 200):
        tokens: tuple[int, ...] = ()
        written = ""
        while len(tokens) < MAX_TOKENS and NAME.startswith(written) and written != NAME:
            cdf = distribution(tokens, seed).cumsum()
            tokens += (min(int(np.searchsorted(cdf, u[len(tokens)], side="right")), len(STRINGS) - 1),)
            written += STRINGS[tokens[-1]]
        if written.startswith(NAME):
            kept.append(tokens)
    assert 0.02 < paths.probability < 0.5, "rejection must keep some draws and waste most"
    deviation = np.sqrt(paths.probability / (20 * m))
    assert abs(len(kept) / (20 * m) - paths.probability) < 4 * deviation
    sequences = sorted({*kept, *given}, key=str)
    counts = np.array([[sample.count(one) for one in sequences] for sample in (given, kept)], dtype=float)
    counts = counts[:, counts.sum(axis=0) >= 10]
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    freedom = counts.shape[1] - 1
    assert freedom >= 5
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)


def test_a_name_spread_over_too_many_sequences_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    u = numbers(200)
    everything = follow(u, 5)
    monkeypatch.setattr(name_paths, "MAX_PREFIXES", 2)
    few = follow(u, 5)
    assert len(few.prefixes) == 2
    certain = [(own, exact_draw(number, 5)) for own, number in zip(tokens_of(few), u, strict=True)]
    assert 0 < tokens_of(few).count(None) < 200
    assert all(own in (None, draw) for own, draw in certain), "what is drawn is exact"
    assert few.probability < everything.probability


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_names_longer_than_a_draw_may_be_are_left_out(
    max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.MAX_TOKENS", max_tokens)
    u = numbers(30)
    paths = follow(u, 2, max_tokens)
    assert tokens_of(paths) == [exact_draw(own, 2) for own in u]
    assert max(len(tokens or ()) for tokens in tokens_of(paths)) <= max_tokens
    assert paths.probability == pytest.approx(exact((), 2).sum(), rel=1.1e-3)


def test_a_name_that_the_model_never_writes_is_not_drawn() -> None:
    paths = NamePaths(OPENING, MAX_TOKENS, numbers(3), np.zeros(len(OPENING.tokens)))
    assert (paths.to_run(), paths.draws, paths.probability) == ([], [None] * 3, 0.0)
