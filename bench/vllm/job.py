"""The annotation of texts with vLLM, as someone who knows vLLM well would write it.

In: the interpreter of an environment with vLLM, the engine's model (its weights' folder, its tokenizer), the
method's settings, texts. Out: the scored calls of each text and what was run; and the engine's own calls
scored again, which is how the losses are compared, since vLLM draws with random numbers of its own.

All texts go through a step at once. Positions: a forward of prompt, text, suffix and text, the prompt cached,
with the likeliest tokens listed at each position; where <API> is not listed and may be among the best, it is
asked for by itself. Draws: every position's context is cached but for its last block; m draws end with ], or
with what no call can have in it. Losses: each distinct sequence once, up to the last token needed, L(e(c))
only where it can decide. Tokenising, reading calls, tools and weights are done here, on the same clock: vLLM
(bench.vllm_worker, a process of its own) sees token ids only. Written for tokenizers whose ``<API>`` is one
token.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bench.measuring import measured
from bench.systems import Run, nothing
from bench.vllm.process import Vllm, engine_settings, environment, folder
from bench.workload import Subject
from pipeline.base.config import MethodConfig, ToolMethod
from pipeline.base.cost import causal_cost
from pipeline.base.records import Call, Candidate, Cost, Phase, Text
from pipeline.engine.model import LanguageModel
from pipeline.method.execution import ExecutedCall, execute
from pipeline.method.filtering import WEIGHTS, only_after, weighted_loss
from pipeline.method.sampling import select_positions
from pipeline.method.selection import select
from pipeline.syntax.calls import CONTROLS, Malformed, linearise, parse_call
from pipeline.syntax.prompts import load_prompt
from pipeline.syntax.tokenizer import TokenizedText, decode_continuations, tokenize_continuations
from tools_service.tools.client import ToolClient

LISTED = (
    100  # most of the likeliest tokens to ask for at each position; none of the others has above 1 / LISTED
)
WARM_UP = 8  # texts
_ENDS = re.compile(rf"[{CONTROLS}\[\]]")  # what ends a draw, as a call or as none

Ask = Callable[..., dict[str, Any]]
Where = tuple[int, str, int]
"""A loss: the number of its text, the prefix z, the token i of the text."""


@dataclass(frozen=True)
class Contest:
    """What vLLM made of it."""

    run: Run
    scored: list[list[Call]]
    """The given calls of each text, as vLLM scores them."""
    about: dict[str, Any]
    """How it was set up, and where its time went."""


def contest(
    python: str, subject: Subject, given: Sequence[Sequence[Call]], ready: Callable[[], Any] = nothing
) -> Contest:
    """vLLM's run of the texts, which begins when `ready` returns; and the `given` calls of each text scored.

    On the clock is all but starting, loading, compiling and a warm-up; the CPU time is both processes', the
    peak of memory vLLM's, with the cache it allots itself.
    """
    model, texts = subject.model, subject.texts
    env = environment(python, model.device)
    with folder(model) as path:
        settings = engine_settings(model, path)
        vllm = Vllm(python, env)
        try:
            loaded = vllm.ask("load", **settings)
            job = Job(vllm.ask, model, subject.tools, subject.method)
            job.warm_up(texts[:WARM_UP])
            ready()
            with measured(torch.device("cpu")) as took:
                calls = job.annotate(texts)
            took |= {"cpu_s": took["cpu_s"] + sum(job.cpu_s.values()), "peak_mib": job.peak_mib}
            run = Run("vLLM", took, job.candidates, calls, dict(job.usage), job.forwards)
            about = {
                "versions": loaded["versions"],
                "settings": settings,
                "environment": {
                    name: env[name] for name in sorted(env) if name.startswith(("VLLM_", "LD_P"))
                },
                "wall_s_in_vllm": dict(job.wall_s),
            }
            again = [executed_again(model, *pair) for pair in zip(texts, given, strict=True)]
            return Contest(run, job.score(texts, again), about)
        finally:
            vllm.close()


def executed_again(model: LanguageModel, text: Text, calls: Iterable[Call]) -> list[ExecutedCall]:
    """Scored calls as calls to score."""
    starts = model.encode([text.text])[0].starts.tolist()
    return [
        ExecutedCall(
            Candidate(call.tool, call.position, starts.index(call.position), call.p_api, call.input, 1),
            call.result,
            None,
        )
        for call in calls
    ]


@dataclass
class Job:
    """The whole method on texts of one tool, given something that answers as bench.vllm_worker does."""

    ask: Ask
    model: LanguageModel
    tools: ToolClient
    method: MethodConfig
    candidates: int = 0
    forwards: int = 0
    peak_mib: float = 0.0
    usage: dict[Phase, Cost] = field(default_factory=dict)
    wall_s: Counter[str] = field(default_factory=Counter)
    cpu_s: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if len(self.model.call_tokens.api) != 1:
            raise SystemExit("vLLM's job is written for tokenizers whose <API> is one token")
        [self.tool] = self.method.tools
        self.settings: ToolMethod = self.method.of(self.tool)
        tokenizer, pieces = self.model.tokenizer, self.model.call_tokens.token_strings
        self.template = load_prompt(self.tool, self.method.prompts)
        plain = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        self.bos = list(self.model.call_tokens.bos)
        self.prompt = [*self.bos, *tokenizer(self.template.prefix, **plain).input_ids]
        self.suffix = tokenize_continuations(tokenizer, [self.template.suffix])[0].ids.tolist()
        ending = {token for token, piece in enumerate(pieces) if _ENDS.search(piece)}
        self.stop = sorted(
            {*ending, *tokenizer.all_special_ids, *range(len(pieces), self.model.vocabulary_size)}
        )

    def warm_up(self, texts: Sequence[Text]) -> None:
        """Whatever is compiled at first use; afterwards the prompt is cached, and nothing else."""
        self.annotate(texts)
        self.ask("forget")
        self.ask("draw", ids=[self.prompt], m=1, max_tokens=1, stop=self.stop)
        self.candidates, self.forwards, self.peak_mib = 0, 0, 0.0
        for counted in (self.usage, self.wall_s, self.cpu_s):
            counted.clear()

    def annotate(self, texts: Sequence[Text]) -> list[list[Call]]:
        """The scored calls of each text."""
        encoded = self.model.encode([text.text for text in texts])
        chosen = self.positions(texts, encoded)
        contexts = []
        for n, i in chosen:
            x = encoded[n].ids.tolist()
            contexts.append([*self._before(x), *x[:i], *self.model.call_tokens.api])
        candidates: list[list[Candidate]] = [[] for _ in texts]
        for ((n, i), p), counts in zip(chosen.items(), self.draw(contexts), strict=True):
            start = int(encoded[n].starts[i])
            candidates[n] += [
                Candidate(self.tool, start, i, p, call, draws) for call, draws in counts.items()
            ]
        self.candidates += sum(map(len, candidates))
        dates = [select(self.tool, text, self.method).date for text in texts]
        return self.score(texts, execute(candidates, dates, self.tools))

    def positions(
        self, texts: Sequence[Text], encoded: Sequence[TokenizedText]
    ) -> dict[tuple[int, int], float]:
        """p(<API>) at each chosen position, by the text's number and the token's."""
        room = self.model.max_text_tokens(self.template, self.settings.max_call_tokens)
        tried = [
            n
            for n, text in enumerate(texts)
            if select(self.tool, text, self.method).chosen and 0 < len(encoded[n].ids) <= room
        ]
        usable = {n: encoded[n].starts >= 0 for n in tried}
        for mask in usable.values():
            mask[0] &= bool(self.bos)
        p_api = self._p_api({n: encoded[n].ids.tolist() for n in tried}, usable)
        return {(n, i): float(p_api[n][i]) for n in tried for i in self._best(p_api[n], usable[n])}

    def _before(self, x: Sequence[int]) -> list[int]:
        """The context of a text's first token."""
        return [*self.prompt, *x, *self.suffix]

    def _best(self, p_api: np.ndarray, usable: np.ndarray) -> list[int]:
        found: list[int] = select_positions(p_api, usable, self.settings.tau_s, self.settings.k).tolist()
        return found

    def _p_api(self, ids: Mapping[int, list[int]], usable: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """p(<API>) before each token [n] of each text; zero where it cannot matter, which is where it was not
        listed and is no more than tau_s, or less than at each of k other positions. Where it was not listed
        and might matter, it is asked for by itself."""
        if not ids:
            return {}
        api, tau_s, k = self.model.call_tokens.api[0], self.settings.tau_s, self.settings.k
        distinct = list({tuple(x): n for n, x in ids.items()}.values())
        before = {n: self._before(ids[n]) for n in distinct}
        whole, starts = [[*before[n], *ids[n]] for n in distinct], [len(before[n]) for n in distinct]
        listed = min(LISTED, self.model.vocabulary_size, math.ceil(1 / tau_s) if tau_s else LISTED)
        answer = self._ask("listed", ids=whole, starts=starts, token=api, listed=listed)
        self._feed("positions", whole, answer["fed"])
        found: dict[tuple[int, ...], np.ndarray] = {}
        open_: list[tuple[int, int]] = []
        for n, logprobs, least in zip(distinct, answer["logprobs"], answer["least"], strict=True):
            missing = np.array([one is None for one in logprobs])
            p = np.exp(np.array([-np.inf if one is None else one for one in logprobs]))
            best = self._best(p, usable[n])
            floor = max(tau_s, p[best].min() if len(best) == k else 0.0)
            open_ += [(n, int(i)) for i in np.flatnonzero(usable[n] & missing & (np.exp(least) >= floor))]
            found[tuple(ids[n])] = p
        if open_:
            contexts = [[*before[n], *ids[n][:i]] for n, i in open_]
            answer = self._ask("next", ids=contexts, token=api)
            self._feed("positions", contexts, answer["fed"])
            for (n, i), logprob in zip(open_, answer["logprobs"], strict=True):
                found[tuple(ids[n])][i] = math.exp(logprob)
        return {n: found[tuple(x)] for n, x in ids.items()}

    def draw(self, contexts: Sequence[list[int]]) -> list[Counter[str]]:
        """The calls drawn after each context, and how often each."""
        if not contexts:
            return []
        m, most = self.settings.m, self.settings.max_call_tokens
        answer = self._ask("draw", ids=contexts, m=m, max_tokens=most, stop=self.stop)
        for context, fed, draws in zip(contexts, answer["fed"], answer["drawn"], strict=True):
            for draw in draws:
                cost = causal_cost(len(context) - fed, fed) + causal_cost(len(context), len(draw) - 1)
                self._spend("decode", cost + Cost(logits=len(draw)))
        read = self._read({tuple(draw) for draws in answer["drawn"] for draw in draws})
        return [
            Counter(call for draw in draws if not isinstance(call := read[tuple(draw)], Malformed))
            for draws in answer["drawn"]
        ]

    def _read(self, drawn: Collection[tuple[int, ...]]) -> dict[tuple[int, ...], str | Malformed]:
        """The input of each draw's call, or why it is none."""
        special = {
            *self.model.tokenizer.all_special_ids,
            *range(len(self.model.call_tokens.token_strings), self.model.vocabulary_size),
        }
        spelt = [draw for draw in drawn if draw[-1] not in special]
        return dict.fromkeys(drawn, Malformed("special_token")) | {
            draw: parse_call(text, self.tool)
            for draw, text in zip(spelt, decode_continuations(self.model.tokenizer, spelt), strict=True)
        }

    def score(self, texts: Sequence[Text], executed: Sequence[Sequence[ExecutedCall]]) -> list[list[Call]]:
        """The losses of every call that has a result."""
        jobs = [
            (n, call.candidate, str(call.result))
            for n, calls in enumerate(executed)
            for call in calls
            if call.result is not None and _passes(call.candidate, texts[n])
        ]
        ids = [one.ids.tolist() for one in self.model.encode([text.text for text in texts])]
        plus = [(n, linearise(c.tool, c.input, result), c.token_index) for n, c, result in jobs]
        empty = [(n, "", c.token_index) for n, c, _ in jobs]
        call = [(n, linearise(c.tool, c.input), c.token_index) for n, c, _ in jobs]
        loss = self._losses(ids, [*plus, *empty], "plus")
        close = [loss[e] - loss[p] >= self.settings.tau_f for e, p in zip(empty, plus, strict=True)]
        loss |= self._losses(ids, [one for one, needed in zip(call, close, strict=True) if needed], "call")
        scored: list[list[Call]] = [[] for _ in texts]
        for (n, candidate, result), p, e, c in zip(jobs, plus, empty, call, strict=True):
            scored[n].append(_scored(candidate, result, loss[p], loss[e], loss.get(c)))
        return scored

    def _losses(self, ids: Sequence[list[int]], wanted: Sequence[Where], phase: Phase) -> dict[Where, float]:
        """L_i for each text, prefix z and position i; each z + x is one sequence for all its positions."""
        if not wanted:
            return {}
        strings = sorted({z for _, z, _ in wanted if z})
        found = zip(strings, tokenize_continuations(self.model.tokenizer, strings), strict=True)
        before = {"": self.bos} | {z: [*self.bos, *pieces.ids.tolist()] for z, pieces in found}
        together: dict[tuple[int, str], set[int]] = {}
        for n, z, i in wanted:
            together.setdefault((n, z), set()).update(range(i, min(i + len(WEIGHTS), len(ids[n]))))
        targets = [sorted(tokens) for tokens in together.values()]
        pairs = list(zip(together, targets, strict=True))
        sequences = [[*before[z], *ids[n][: tokens[-1] + 1]] for (n, z), tokens in pairs]
        indices = [[len(before[z]) + t for t in tokens] for (_, z), tokens in pairs]
        answer = self._ask("score", ids=sequences, wanted=indices)
        for (_, z), sequence, fed in zip(together, sequences, answer["fed"], strict=True):
            self._feed(phase if z else "empty", [sequence], [fed])
        known = {
            (n, z, t): logprob
            for ((n, z), tokens), logprobs in zip(pairs, answer["logprobs"], strict=True)
            for t, logprob in zip(tokens, logprobs, strict=True)
        }
        return {
            (n, z, i): weighted_loss(
                np.array([known[n, z, t] for t in range(i, min(i + len(WEIGHTS), len(ids[n])))])
            )
            for n, z, i in wanted
        }

    def _ask(self, do: str, **fields: Any) -> dict[str, Any]:
        answer = self.ask(do, **fields)
        self.wall_s[do] += answer["wall_s"]
        self.cpu_s[do] += answer["cpu_s"]
        self.forwards += answer["forwards"]
        self.peak_mib = max(self.peak_mib, answer["peak_mib"])
        return answer

    def _feed(self, phase: Phase, sequences: Iterable[Sequence[int]], fed: Iterable[int]) -> None:
        """Tokens that were run with logits for each, behind what was cached."""
        for sequence, size in zip(sequences, fed, strict=True):
            self._spend(phase, causal_cost(len(sequence) - size, size, size))

    def _spend(self, phase: Phase, cost: Cost) -> None:
        self.usage[phase] = self.usage.get(phase, Cost()) + cost


def _passes(candidate: Candidate, text: Text) -> bool:
    """The MT rule."""
    return candidate.tool != "MT" or not only_after(candidate.input, text.text, candidate.position)


def _scored(candidate: Candidate, result: str, l_plus: float, l_empty: float, l_call: float | None) -> Call:
    l_minus = l_empty if l_call is None else min(l_empty, l_call)
    return Call(
        tool=candidate.tool,
        position=candidate.position,
        p_api=candidate.p_api,
        input=candidate.input,
        result=result,
        l_plus=l_plus,
        l_empty=l_empty,
        l_call=l_call,
        gain=l_minus - l_plus,
    )
