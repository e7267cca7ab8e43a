"""The next token of each row: the most likely or a sampled one, and the rank of <API> (section 4.2).

In: logits, and what each row asks for. Out: tokens and ranks. Equally likely tokens are ranked by their
ids, as argmax does. Sampling inverts the cumulative distribution, as in engine/sampler.py, at a random
number that depends on the request alone.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.engine.random_streams import stream_keys, uniforms
from pipeline.engine.sampler import invert_cdf, token_ranks
from pipeline.inference.params import DecodingParams

# Greedy already, and the quotient of any float32 logit is finite.
_LEAST_TEMPERATURE = 1e-200


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """Of one row: the next token, the rank of its <API> token from 0, whether its logits are finite."""

    token: int
    api_rank: int
    is_finite: bool


class RandomStream:
    """The random numbers of a request: the same for the same seed and prompt, whatever runs beside it."""

    def __init__(self, seed: int, prompt: Sequence[int]) -> None:
        digest = hashlib.blake2b(np.asarray(prompt, dtype="<i8").tobytes(), digest_size=8).digest()
        self._key = stream_keys(seed, int.from_bytes(digest, "little"), 0, 0, 1)
        self._drawn = 0

    def next(self) -> float:
        """The next number in [0, 1)."""
        self._drawn += 1
        return float(uniforms(self._key, self._drawn - 1)[0])


def choose_tokens(
    logits: Tensor,  # [B, V]
    api_tokens: Sequence[int],  # [B] the token whose rank is asked
    samplings: Sequence[tuple[DecodingParams, RandomStream] | None],  # [B] None: the most likely token
) -> list[TokenChoice]:
    """The choice of each row."""
    api_ranks = token_ranks(logits, torch.tensor(api_tokens, device=logits.device))
    best, greedy = logits.max(1)
    # One transfer from the device for everything.
    rows = torch.stack([greedy, api_ranks, torch.isfinite(best).long()], 1).tolist()
    choices = [TokenChoice(token, rank, bool(finite)) for token, rank, finite in rows]
    for row, sampling in enumerate(samplings):
        if sampling is not None and choices[row].is_finite:
            token = sample(logits[row], *sampling)
            choices[row] = TokenChoice(token, choices[row].api_rank, is_finite=True)
    return choices


def sample(logits: Tensor, params: DecodingParams, stream: RandomStream) -> int:
    """A token of logits [V], finite or -inf, with the temperature and the top_p of `params`."""
    scaled = logits.double() / max(params.temperature, _LEAST_TEMPERATURE)
    if params.top_p < 1.0:
        ordered, ids = scaled.sort(descending=True, stable=True)
        probabilities = ordered.softmax(0)
        # A token is in the nucleus if those before it do not reach top_p.
        outside = probabilities.cumsum(0) - probabilities >= params.top_p
        scaled = scaled.index_fill(0, ids[outside], -torch.inf)
    u = torch.tensor([[stream.next()]], dtype=torch.float64, device=logits.device)
    return int(invert_cdf(scaled[None], u))
