"""The requests to SGLang and what is read from its outputs, with an engine of the documented form."""

from __future__ import annotations

from typing import Any

import pytest

from bench.sglang.worker import SglangWorker

pytestmark = pytest.mark.unit


def logprob(sequence: list[int], position: int, token: int) -> float:
    """The scripted log-probability of `token` at `position` of `sequence`."""
    return -(token + sum(sequence[:position]) / 100)


class FakeEngine:
    """Answers as sglang.Engine.generate does. The cache has the first 2 tokens of each sequence."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.flushed = False

    def flush_cache(self) -> None:
        self.flushed = True

    def generate(
        self,
        input_ids: list[list[int]],
        sampling_params: dict[str, Any],
        return_logprob: bool = False,
        logprob_start_len: list[int] | None = None,
        token_ids_logprob: list[list[int]] | None = None,
    ) -> list[dict[str, Any]]:
        self.requests.append({"input_ids": input_ids, **sampling_params})
        outputs = []
        for number, ids in enumerate(input_ids):
            meta: dict[str, Any] = {"prompt_tokens": len(ids), "cached_tokens": 2}
            if return_logprob and logprob_start_len:
                start = logprob_start_len[number]
                rows = range(start, len(ids)) if start >= 0 else range(0)
                own = [(None if at == start else logprob(ids, at, ids[at]), ids[at], None) for at in rows]
                meta["input_token_logprobs"] = own
                if token_ids_logprob:
                    [token] = token_ids_logprob[number]
                    meta["input_token_ids_logprobs"] = [
                        None if at == start else [(logprob(ids, at, token), token, None)] for at in rows
                    ]
                    meta["output_token_ids_logprobs"] = [[(logprob(ids, len(ids), token), token, None)]]
            outputs.append({"output_ids": [number, 9], "meta_info": meta})
        return outputs


@pytest.fixture
def worker() -> SglangWorker:
    worker = SglangWorker()
    worker.engine = FakeEngine()
    return worker


IDS = [[3, 5, 7, 8], [3, 5, 6]]


def test_a_tokens_log_probability_at_each_position_from_the_start_on(worker: SglangWorker) -> None:
    response = worker.respond("token_logprobs", ids=IDS, starts=[2, 1], token=7, top=100)
    starts = zip(IDS, (2, 1), strict=True)
    expected = [[logprob(ids, start, 7), logprob(ids, start + 1, 7)] for ids, start in starts]
    assert response["logprobs"] == response["lowest"] == expected
    assert response["fed"] == [2, 1]


def test_a_tokens_log_probability_after_each_sequence(worker: SglangWorker) -> None:
    response = worker.respond("next_logprob", ids=IDS, token=4)
    assert response["logprobs"] == [logprob(IDS[0], 4, 4), logprob(IDS[1], 3, 4)]


def test_the_log_probabilities_of_the_tokens_at_the_indices(worker: SglangWorker) -> None:
    response = worker.respond("score", ids=IDS, indices=[[2, 3], [1]])
    assert response["logprobs"] == [[logprob(IDS[0], 2, 7), logprob(IDS[0], 3, 8)], [logprob(IDS[1], 1, 5)]]
    assert response["fed"] == [2, 1]


def test_each_draw_is_a_request_and_belongs_to_its_sequence(worker: SglangWorker) -> None:
    response = worker.respond("sample", ids=IDS, m=3, max_tokens=6, stop=[9])
    assert response["drawn"] == [[[0, 9], [1, 9], [2, 9]], [[3, 9], [4, 9], [5, 9]]]
    assert response["fed"] == [[2, 2, 2], [1, 1, 1]]
    [request] = worker.engine.requests
    assert request["input_ids"] == [IDS[0]] * 3 + [IDS[1]] * 3
    assert (request["max_new_tokens"], request["stop_token_ids"]) == (6, [9])


def test_a_reset_empties_the_cache(worker: SglangWorker) -> None:
    assert "error" not in worker.respond("reset")
    assert worker.engine.flushed
