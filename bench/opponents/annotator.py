"""Annotation as a client of an inference engine, written as someone who knows the engine well would.

In: a function that sends requests to an engine's worker (bench/opponents/worker.py), and a
workload. Out: the scored calls of each text with the usage.

Every step handles all texts at once. Positions: one forward over prompt, text, suffix and text,
with the prompt cached, gives p(<API>) before each token. An engine may list the likeliest tokens
only; where <API> is not listed but may be among the best positions, its probability is requested
separately. Draws: the context of every position is cached as far as the engine can; m draws end at
], or at a token that no call can contain. Draws are as long as the tool's name first, and only those
that name it are continued, if the warm-up shows that this is faster. Losses: every distinct sequence runs
once, up to the last token needed, and L(e(c)) only where it can decide.

Tokenizing, parsing, tools and weights are done here, on the same clock. The worker sees token ids
only. Works only with tokenizers whose ``<API>`` is one token.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.plain import passes_input_rule, prompt_ids, scored_call
from pipeline.base.config import MethodConfig
from pipeline.base.cost import causal_cost
from pipeline.base.records import Call, Candidate, Cost, Phase, Text
from pipeline.engine.model import LanguageModel
from pipeline.method.execution import ExecutedCall, execute
from pipeline.method.filtering import WEIGHTS, weighted_loss
from pipeline.method.sampling import select_positions
from pipeline.method.selection import select
from pipeline.syntax.grammar import call_head
from pipeline.syntax.tokenizer import (
    TokenizedText,
    decode_continuations,
    special_ids,
    tokenize_continuations,
)
from tools_service.contract.spec import ToolMethod
from tools_service.syntax.calls import CONTROLS, Malformed, linearise, parse_call
from tools_service.syntax.prompts import load_prompt
from tools_service.tools.client import ToolClient

TOP_LOGPROBS = 100
"""Most tokens to list per position. Those left out have p of at most 1 / TOP_LOGPROBS."""
_STOP = re.compile(rf"[{CONTROLS}\[\]]")  # a token with one of these ends a draw, with a call or without

Request = Callable[..., dict[str, Any]]
LossKey = tuple[int, str, int]
"""A loss: the number of its text, the prefix z, the token i of the text."""


def calls_to_score(model: LanguageModel, text: Text, calls: Iterable[Call]) -> list[ExecutedCall]:
    """Scored calls as executed calls, so that they can be scored again."""
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
class ClientAnnotator:
    """The whole method for one tool. `request` answers as bench/opponents/worker.py says."""

    request: Request
    model: LanguageModel
    tools: ToolClient
    method: MethodConfig
    candidates: int = 0
    forwards: int = 0
    name_first: bool = True
    usage: dict[Phase, Cost] = field(default_factory=dict)
    wall_s: Counter[str] = field(default_factory=Counter)
    cpu_s: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if len(self.model.call_tokens.api) != 1:
            raise SystemExit("this comparison needs a tokenizer whose <API> is one token")
        [self.tool] = self.method.tools
        self.settings: ToolMethod = self.method.of(self.tool)
        self.template = load_prompt(self.tool, self.method.prompts)
        self.bos = list(self.model.call_tokens.bos)
        self.prefix, self.suffix = prompt_ids(self.model, self.template)
        strings = self.model.call_tokens.token_strings
        unknown = range(len(strings), self.model.vocabulary_size)
        self.special = {*special_ids(self.model.tokenizer), *unknown}
        ending = {token for token, string in enumerate(strings) if _STOP.search(string)}
        self._ends = ending | self.special
        self.stop = sorted(self._ends)
        self.head = call_head(self.tool, self.settings.takes_input)
        [head] = tokenize_continuations(self.model.tokenizer, [self.head])
        self.head_tokens = len(head.ids)

    def warm_up(self, texts: Sequence[Text]) -> None:
        """Let the engine compile what it compiles at first use, and draw in the faster way."""
        seconds = {}
        for name_first in (True, False, True):  # the first time includes compiling
            self.name_first = name_first
            self.reset()
            self.annotate(texts)
            seconds[name_first] = self.wall_s["sample"]
        self.name_first = seconds[True] <= seconds[False]

    def reset(self) -> None:
        """Forget what was counted, and empty the engine's cache but for the prompt."""
        self.request("reset")
        self.request("sample", ids=[self.prefix], m=1, max_tokens=1, stop=self.stop)
        self.candidates, self.forwards = 0, 0
        for counts in (self.usage, self.wall_s, self.cpu_s):
            counts.clear()

    def annotate(self, texts: Sequence[Text]) -> list[list[Call]]:
        """The scored calls of each text."""
        encoded = self.model.encode([text.text for text in texts])
        positions = self.select_positions(texts, encoded)
        contexts = []
        for n, i in positions:
            x = encoded[n].ids.tolist()
            contexts.append([*self._context(x), *x[:i], *self.model.call_tokens.api])
        candidates: list[list[Candidate]] = [[] for _ in texts]
        for ((n, i), p), counts in zip(positions.items(), self.draw(contexts), strict=True):
            start = int(encoded[n].starts[i])
            candidates[n] += [
                Candidate(self.tool, start, i, p, call, count) for call, count in counts.items()
            ]
        self.candidates += sum(map(len, candidates))
        dates = [select(self.tool, text, self.method).date for text in texts]
        return self.score(texts, asyncio.run(execute(candidates, dates, self.tools)))

    def select_positions(
        self, texts: Sequence[Text], encoded: Sequence[TokenizedText]
    ) -> dict[tuple[int, int], float]:
        """p(<API>) at each selected position, by the text's number and the token's."""
        room = self.model.max_text_tokens(self.template, self.settings.max_call_tokens)
        selected = [
            n
            for n, text in enumerate(texts)
            if select(self.tool, text, self.method).chosen and 0 < len(encoded[n].ids) <= room
        ]
        usable = {n: encoded[n].starts >= 0 for n in selected}
        for mask in usable.values():
            mask[0] &= bool(self.bos)
        p_api = self._p_api({n: encoded[n].ids.tolist() for n in selected}, usable)
        return {(n, i): float(p_api[n][i]) for n in selected for i in self._best(p_api[n], usable[n])}

    def _context(self, x: Sequence[int]) -> list[int]:
        """The context of a text's first token."""
        return [*self.prefix, *x, *self.suffix]

    def _best(self, p_api: np.ndarray, usable: np.ndarray) -> list[int]:
        best: list[int] = select_positions(p_api, usable, self.settings.tau_s, self.settings.k).tolist()
        return best

    def _p_api(self, ids: Mapping[int, list[int]], usable: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """p(<API>) before each token [n] of each text, or zero where the value cannot matter.

        It cannot matter where <API> is not listed and its probability is at most tau_s, or lower
        than at k other positions. Where it is not listed and may matter, it is requested
        separately.
        """
        if not ids:
            return {}
        api, tau_s, k = self.model.call_tokens.api[0], self.settings.tau_s, self.settings.k
        distinct = list({tuple(x): n for n, x in ids.items()}.values())
        context = {n: self._context(ids[n]) for n in distinct}
        whole, starts = [[*context[n], *ids[n]] for n in distinct], [len(context[n]) for n in distinct]
        top = min(TOP_LOGPROBS, self.model.vocabulary_size, math.ceil(1 / tau_s) if tau_s else TOP_LOGPROBS)
        response = self._request("token_logprobs", ids=whole, starts=starts, token=api, top=top)
        self._record("positions", whole, response["fed"])
        p_api: dict[tuple[int, ...], np.ndarray] = {}
        unknown: list[tuple[int, int]] = []  # text and token where <API> is requested separately
        for n, logprobs, lowest in zip(distinct, response["logprobs"], response["lowest"], strict=True):
            missing = np.array([logprob is None for logprob in logprobs])
            p = np.exp(np.array([-np.inf if logprob is None else logprob for logprob in logprobs]))
            best = self._best(p, usable[n])
            threshold = max(tau_s, p[best].min() if len(best) == k else 0.0)
            may_matter = usable[n] & missing & (np.exp(lowest) >= threshold)
            unknown += [(n, int(i)) for i in np.flatnonzero(may_matter)]
            p_api[tuple(ids[n])] = p
        if unknown:
            contexts = [[*context[n], *ids[n][:i]] for n, i in unknown]
            response = self._request("next_logprob", ids=contexts, token=api)
            self._record("positions", contexts, response["fed"])
            for (n, i), logprob in zip(unknown, response["logprobs"], strict=True):
                p_api[tuple(ids[n])][i] = math.exp(logprob)
        return {n: p_api[tuple(x)] for n, x in ids.items()}

    def draw(self, contexts: Sequence[list[int]]) -> list[Counter[str]]:
        """The calls drawn after each context, and how often each was drawn."""
        if not contexts:
            return []
        m, max_tokens = self.settings.m, self.settings.max_call_tokens
        if not self.name_first or self.head_tokens >= max_tokens:
            drawn = self._sample(contexts, m, max_tokens)
        else:
            drawn = self._sample(contexts, m, self.head_tokens)
            named = self._name_the_tool({tuple(draw) for draws in drawn for draw in draws})
            unfinished = [
                (n, j)
                for n, draws in enumerate(drawn)
                for j, draw in enumerate(draws)
                if tuple(draw) in named and draw[-1] not in self._ends
            ]
            longer = [[*contexts[n], *drawn[n][j]] for n, j in unfinished]
            rests = self._sample(longer, 1, max_tokens - self.head_tokens) if longer else []
            for (n, j), [rest] in zip(unfinished, rests, strict=True):
                drawn[n][j] += rest
        distinct = {tuple(draw) for draws in drawn for draw in draws}
        calls = self._parse(distinct)
        return [
            Counter(call for draw in draws if not isinstance(call := calls[tuple(draw)], Malformed))
            for draws in drawn
        ]

    def _sample(self, contexts: Sequence[list[int]], m: int, max_tokens: int) -> list[list[list[int]]]:
        """m draws of at most `max_tokens` tokens after each context."""
        response = self._request("sample", ids=contexts, m=m, max_tokens=max_tokens, stop=self.stop)
        drawn: list[list[list[int]]] = response["drawn"]
        for context, fed, draws in zip(contexts, response["fed"], drawn, strict=True):
            for draw, size in zip(draws, fed, strict=True):
                cost = causal_cost(len(context) - size, size) + causal_cost(len(context), len(draw) - 1)
                self._add("decode", cost + Cost(logits=len(draw)))
        return drawn

    def _name_the_tool(self, drawn: Collection[tuple[int, ...]]) -> set[tuple[int, ...]]:
        """The draws that begin as a call of the tool does, as far as they go."""
        draws = list(drawn)
        strings = decode_continuations(self.model.tokenizer, draws)
        head = self.head
        return {
            draw
            for draw, string in zip(draws, strings, strict=True)
            if head.startswith(string) or string.startswith(head)
        }

    def _parse(self, drawn: Collection[tuple[int, ...]]) -> dict[tuple[int, ...], str | Malformed]:
        """The input of each drawn call, or why it is no call."""
        plain = [draw for draw in drawn if draw[-1] not in self.special]
        strings = decode_continuations(self.model.tokenizer, plain)
        calls: dict[tuple[int, ...], str | Malformed] = dict.fromkeys(drawn, Malformed("special_token"))
        return calls | {
            d: parse_call(string, self.tool, self.settings.takes_input)
            for d, string in zip(plain, strings, strict=True)
        }

    def score(self, texts: Sequence[Text], executed: Sequence[Sequence[ExecutedCall]]) -> list[list[Call]]:
        """The losses of every call that has a result."""
        jobs = [
            (n, call.candidate, str(call.result))
            for n, calls in enumerate(executed)
            for call in calls
            if call.result is not None and passes_input_rule(call.candidate, texts[n], self.method)
        ]
        ids = [tokenized.ids.tolist() for tokenized in self.model.encode([text.text for text in texts])]
        plus = [(n, linearise(c.tool, c.input, result), c.token_index) for n, c, result in jobs]
        empty = [(n, "", c.token_index) for n, c, _ in jobs]
        call = [(n, linearise(c.tool, c.input), c.token_index) for n, c, _ in jobs]
        losses = self._losses(ids, [*plus, *empty], "plus")
        helpful = [losses[e] - losses[p] >= self.settings.tau_f for e, p in zip(empty, plus, strict=True)]
        losses |= self._losses(
            ids, [key for key, needed in zip(call, helpful, strict=True) if needed], "call"
        )
        scored: list[list[Call]] = [[] for _ in texts]
        for (n, candidate, result), p, e, c in zip(jobs, plus, empty, call, strict=True):
            scored[n].append(scored_call(candidate, result, losses[p], losses[e], losses.get(c)))
        return scored

    def _losses(
        self, ids: Sequence[list[int]], keys: Sequence[LossKey], phase: Phase
    ) -> dict[LossKey, float]:
        """L_i for each text, prefix z and position i. Each z + x is one sequence."""
        if not keys:
            return {}
        strings = sorted({z for _, z, _ in keys if z})
        tokenized = zip(strings, tokenize_continuations(self.model.tokenizer, strings), strict=True)
        prefix = {"": self.bos} | {z: [*self.bos, *text.ids.tolist()] for z, text in tokenized}
        targets = {key: range(key[2], min(key[2] + len(WEIGHTS), len(ids[key[0]]))) for key in keys}
        by_sequence: dict[tuple[int, str], set[int]] = {}
        for (n, z, _), tokens in targets.items():
            by_sequence.setdefault((n, z), set()).update(tokens)
        pairs = [(pair, sorted(tokens)) for pair, tokens in by_sequence.items()]
        sequences = [[*prefix[z], *ids[n][: tokens[-1] + 1]] for (n, z), tokens in pairs]
        indices = [[len(prefix[z]) + t for t in tokens] for (_, z), tokens in pairs]
        response = self._request("score", ids=sequences, indices=indices)
        for (_, z), sequence, fed in zip(by_sequence, sequences, response["fed"], strict=True):
            self._record(phase if z else "empty", [sequence], [fed])
        logprob = {
            (n, z, t): value
            for ((n, z), tokens), values in zip(pairs, response["logprobs"], strict=True)
            for t, value in zip(tokens, values, strict=True)
        }
        return {
            (n, z, i): weighted_loss(np.array([logprob[n, z, t] for t in tokens]))
            for (n, z, i), tokens in targets.items()
        }

    def _request(self, method: str, **fields: Any) -> dict[str, Any]:
        response = self.request(method, **fields)
        self.wall_s[method] += response["wall_s"]
        self.cpu_s[method] += response["cpu_s"]
        self.forwards += response["forwards"]
        return response

    def _record(self, phase: Phase, sequences: Iterable[Sequence[int]], fed: Iterable[int]) -> None:
        """Add the cost of sequences whose last `fed` tokens ran, with logits for each."""
        for sequence, size in zip(sequences, fed, strict=True):
            self._add(phase, causal_cost(len(sequence) - size, size, size))

    def _add(self, phase: Phase, cost: Cost) -> None:
        self.usage[phase] = self.usage.get(phase, Cost()) + cost
