"""SGLang behind a pipe. The protocol is that of bench/opponents/worker.py.

Imports only the standard library and SGLang, because it runs in SGLang's environment. SGLang runs
the model in a process of its own, so forwards are not counted.

Its prefix cache holds single tokens, and is read while sequences are scored, up to the first token
whose log-probability is requested. Its lists of log-probabilities begin at `logprob_start_len` with
an entry that is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.opponents.worker import Response, Worker, serve


class SglangWorker(Worker):
    """One SGLang engine, whose processes are children of this one."""

    name = "SGLang"
    hint = "; install sglang on a machine with a GPU: its kernels on PyPI need CUDA"
    packages = ("sglang", "sglang-kernel", "torch", "transformers")

    def do_load(self, **settings: Any) -> Response:
        """Start an engine with these arguments of sglang.Engine."""
        from sglang import Engine

        self.engine = Engine(**settings)
        return {"versions": self.versions()}

    def empty_cache(self) -> None:
        """Empty the prefix cache."""
        self.engine.flush_cache()

    def do_token_logprobs(self, ids: list[list[int]], starts: list[int], token: int, top: int) -> Response:
        """The log-probability of `token` from `start` on, without a list: `top` is not needed."""
        outputs = self._logprobs(ids, [start - 1 for start in starts], [[token]] * len(ids))
        logprobs = [
            [row[0][0] for row in output["meta_info"]["input_token_ids_logprobs"][1:]] for output in outputs
        ]
        return {"logprobs": logprobs, "lowest": logprobs, "fed": _fed(outputs)}

    def do_next_logprob(self, ids: list[list[int]], token: int) -> Response:
        """The log-probability of `token` after each sequence."""
        outputs = self._logprobs(ids, [-1] * len(ids), [[token]] * len(ids))
        logprobs = [output["meta_info"]["output_token_ids_logprobs"][0][0][0] for output in outputs]
        return {"logprobs": logprobs, "fed": _fed(outputs)}

    def do_sample(self, ids: list[list[int]], m: int, max_tokens: int, stop: list[int]) -> Response:
        """m continuations of each sequence at temperature 1, each up to a token of `stop`.

        Each is a request of its own. With `n`, SGLang waits for one that fills the cache first;
        here the contexts are cached, apart from their last token.
        """
        params = {"max_new_tokens": max_tokens, "stop_token_ids": stop, "temperature": 1.0}
        outputs = self._generate([sequence for sequence in ids for _ in range(m)], params)
        drawn, fed = [output["output_ids"] for output in outputs], _fed(outputs)
        rows = range(0, len(outputs), m)
        return {"drawn": [drawn[i : i + m] for i in rows], "fed": [fed[i : i + m] for i in rows]}

    def do_score(self, ids: list[list[int]], indices: list[list[int]]) -> Response:
        """The log-probabilities (nats) of the tokens at `indices`, from 1, of each sequence."""
        starts = [min(of_sequence) - 1 for of_sequence in indices]
        outputs = self._logprobs(ids, starts)
        logprobs = []
        for output, start, of_sequence in zip(outputs, starts, indices, strict=True):
            rows = output["meta_info"]["input_token_logprobs"]
            logprobs.append([rows[index - start][0] for index in of_sequence])
        return {"logprobs": logprobs, "fed": _fed(outputs)}

    def _logprobs(
        self, ids: list[list[int]], starts: list[int], tokens: list[list[int]] | None = None
    ) -> list[Any]:
        """The outputs with log-probabilities from `starts` on, of the sequence's tokens and of `tokens`."""
        params = {"max_new_tokens": 1, "temperature": 1.0}
        wanted = {"return_logprob": True, "logprob_start_len": starts, "token_ids_logprob": tokens}
        return self._generate(ids, params, **wanted)

    def _generate(self, ids: list[list[int]], params: dict[str, Any], **wanted: Any) -> list[Any]:
        outputs: list[Any] = self.engine.generate(input_ids=ids, sampling_params=params, **wanted)
        return outputs


def _fed(outputs: Sequence[Any]) -> list[int]:
    """How many tokens of each sequence ran, because they were not in the prefix cache."""
    return [output["meta_info"]["prompt_tokens"] - output["meta_info"]["cached_tokens"] for output in outputs]


def main() -> None:
    """Respond until standard input ends."""
    serve(SglangWorker())
