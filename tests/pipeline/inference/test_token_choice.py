"""Sampling has the probabilities of temperature and top_p; ranks are those of argmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.inference.params import DecodingParams
from pipeline.inference.token_choice import RandomStream, choose_tokens, sample

pytestmark = pytest.mark.unit

LOGITS = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.1]))


def shares(draws: int = 20_000, **settings: float) -> np.ndarray:
    params, stream = DecodingParams(**settings), RandomStream(0, [1, 2])  # type: ignore[arg-type]
    tokens = [sample(LOGITS, params, stream) for _ in range(draws)]
    return np.bincount(tokens, minlength=4) / draws


def test_at_temperature_1_tokens_have_their_probabilities() -> None:
    np.testing.assert_allclose(shares(temperature=1.0), [0.5, 0.25, 0.15, 0.1], atol=0.012)


def test_a_temperature_sharpens_or_flattens() -> None:
    for temperature in (0.5, 3.0):
        expected = torch.softmax(LOGITS / temperature, 0).numpy()
        np.testing.assert_allclose(shares(temperature=temperature), expected, atol=0.012)


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.4, [1, 0, 0, 0]), (0.5, [1, 0, 0, 0]), (0.6, [2 / 3, 1 / 3, 0, 0]), (0.9, [5 / 9, 5 / 18, 1 / 6, 0])],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, expected: list[float]) -> None:
    np.testing.assert_allclose(shares(temperature=1.0, top_p=top_p), expected, atol=0.012)


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-200])
@pytest.mark.parametrize("top_p", [5e-324, 0.5, 1.0])
def test_the_smallest_temperature_is_greedy(temperature: float, top_p: float) -> None:
    logits = torch.tensor([1.0, 5.0, 4.9, -3.4e38, -torch.inf])
    params = DecodingParams(temperature=temperature, top_p=top_p)
    assert sample(logits, params, RandomStream(0, [1])) == 1
    assert sample(logits[:3] - 9, params, RandomStream(0, [1])) == 1


def test_a_token_of_probability_0_is_never_drawn() -> None:
    logits = LOGITS.clone()
    logits[0] = -torch.inf
    stream = RandomStream(3, [])
    assert {sample(logits, DecodingParams(temperature=2.0), stream) for _ in range(500)} == {1, 2, 3}


def test_streams_differ_by_seed_and_prompt_and_by_nothing_else() -> None:
    def numbers(seed: int, prompt: list[int]) -> list[float]:
        stream = RandomStream(seed, prompt)
        return [stream.next() for _ in range(4)]

    assert numbers(1, [5, 6]) == numbers(1, [5, 6])
    assert (
        len({tuple(numbers(seed, prompt)) for seed in (-1, 0, 1, 2**64 - 2) for prompt in ([5], [5, 6])}) == 8
    )


def test_ranks_count_the_tokens_that_argmax_would_take_before() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [torch.nan, 1, 1, 1], [0.0, 0.0, 0.0, 0.0]])
    first, broken, tied = choose_tokens(logits, [2, 0, 3], [None] * 3)
    assert (first.token, first.api_rank, first.is_finite) == (1, 1, True)
    assert not broken.is_finite
    assert (tied.token, tied.api_rank) == (0, 3)
