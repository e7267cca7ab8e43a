"""What the worker reads from vLLM's outputs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench.vllm.worker import VllmWorker

pytestmark = pytest.mark.unit


class Scripted(VllmWorker):
    """A worker whose vLLM returns what the test gives it."""

    def __init__(self, *outputs: Any) -> None:
        super().__init__()
        self.engine, self.outputs = object(), list(outputs)

    def _params(self, **_: Any) -> None: ...

    def _generate(self, ids: Any, params: Any) -> list[Any]:
        return self.outputs


def flat(*rows: list[tuple[int, float]]) -> Any:
    """Log-probabilities as vLLM's flat lists have them; the first token has none."""
    ends = [sum(map(len, rows[: n + 1])) for n in range(len(rows))]
    return SimpleNamespace(
        start_indices=[0, *ends[:-1]],
        end_indices=ends,
        token_ids=[token for row in rows for token, _ in row],
        logprobs=[logprob for row in rows for _, logprob in row],
    )


def test_the_worker_finds_a_token_among_those_listed() -> None:
    rows = flat(
        [],
        [(5, -9.0), (1, -0.5), (2, -1.0)],
        [(7, -3.0), (8, -0.1), (7, -3.0)],
        [(8, -4.0), (1, -2.0), (2, -2.5)],
    )
    output = SimpleNamespace(prompt_token_ids=[3, 5, 7, 8], num_cached_tokens=1, prompt_logprobs=rows)
    response = Scripted(output).respond("token_logprobs", ids=[[3, 5, 7, 8]], starts=[2], token=7, top=2)
    assert response["logprobs"] == [[-3.0, None]]
    assert response["lowest"] == [[-3.0, -2.5]]
    assert response["fed"] == [3]
    with pytest.raises(RuntimeError, match="1 tokens were cached, needed from 1 on"):
        Scripted(output).respond("token_logprobs", ids=[[3, 5, 7, 8]], starts=[1], token=7, top=2)


def test_the_worker_scores_the_tokens_at_the_indices() -> None:
    rows = flat([], [(5, -9.0)], [(7, -3.0)], [(8, -4.0)])
    output = SimpleNamespace(prompt_token_ids=[3, 5, 7, 8], num_cached_tokens=0, prompt_logprobs=rows)
    response = Scripted(output).respond("score", ids=[[3, 5, 7, 8]], indices=[[1, 3]])
    assert response["logprobs"] == [[-9.0, -4.0]]
    assert response["fed"] == [4]
