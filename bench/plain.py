"""The plain procedure: `generate` at every position, three full forwards for every call.

In: texts, a transformers model, the method's settings. Out: the scored calls of each text, and the
usage of its forwards. The m draws of a position are one batch of `generate` with its cache. A
candidate is scored at each position by one batch of the three whole sequences. Positions, calls,
texts and tools share nothing.

The random numbers are the engine's: a logits processor keeps only the token that the draw's own
stream picks. Both systems must therefore draw the same calls, and their kept calls can be compared.
Works only with tokenizers whose ``<API>`` is one token.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, StoppingCriteria

from pipeline.base.config import MethodConfig
from pipeline.base.records import Call, Candidate, Cost, Phase, Text
from pipeline.engine.model import LanguageModel
from pipeline.engine.random_streams import stream_keys, uniforms
from pipeline.engine.sampler import invert_cdf
from pipeline.method.execution import ExecutedCall, execute
from pipeline.method.filtering import only_after, weighted_loss
from pipeline.method.sampling import select_positions
from pipeline.method.selection import select
from pipeline.syntax.tokenizer import decode_continuations, special_ids, tokenize_continuations
from tools_service.contract.declarations import stream_number
from tools_service.syntax.calls import END, Malformed, linearise, parse_call
from tools_service.syntax.prompts import PromptTemplate, load_prompt
from tools_service.tools.client import ToolClient


class StreamSampling(LogitsProcessor):
    """Keeps in row j of a batch only the token that stream j picks from the row's distribution."""

    def __init__(self, keys: np.ndarray, start: int) -> None:
        """`start` is the number of tokens before the first drawn one."""
        self.keys, self.start = keys, start

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        u = torch.from_numpy(uniforms(self.keys, input_ids.shape[1] - self.start)).to(scores.device)
        picked = invert_cdf(scores.float(), u[:, None])
        return torch.full_like(scores, -torch.inf).scatter_(1, picked, 0.0)


class ClosingBracket(StoppingCriteria):
    """Ends a row at its first token that contains a ]."""

    def __init__(self, closing: torch.Tensor) -> None:
        self.closing = closing

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> torch.BoolTensor:
        return torch.isin(input_ids[:, -1], self.closing)


class PlainAnnotator:
    """The plain procedure with one model; `usage` is the cost of its forwards, by phase."""

    def __init__(self, model: LanguageModel, tools: ToolClient, method: MethodConfig) -> None:
        if len(model.call_tokens.api) != 1:
            raise SystemExit("the plain procedure needs a tokenizer whose <API> is one token")
        if any(method.of(tool).given_name for tool in method.tools):
            raise SystemExit("the plain procedure draws after <API>: leave given_name off")
        self.engine, self.model, self.tools, self.method = model, model.model, tools, method
        self.prompts = {tool: load_prompt(tool, method.prompts) for tool in method.tools}
        strings = model.call_tokens.token_strings
        closing = [token for token, string in enumerate(strings) if END in string]
        self.closing = torch.tensor(closing, device=model.device)
        self.phase: Phase = "positions"
        self.usage: dict[Phase, Cost] = {}
        self.candidates = 0

    @torch.inference_mode()
    def annotate(self, texts: Sequence[Text]) -> list[list[Call]]:
        """The scored calls of each text."""
        hook = self.model.register_forward_pre_hook(self._record, with_kwargs=True)
        try:
            tools = self.method.tools
            return [[call for tool in tools for call in self._annotate(text, tool)] for text in texts]
        finally:
            hook.remove()

    def _annotate(self, text: Text, tool: str) -> list[Call]:
        selection = select(tool, text, self.method)
        if not selection.chosen:
            return []
        candidates = self._sample(text, tool)
        self.candidates += len(candidates)
        [executed] = asyncio.run(execute([candidates], [selection.date], self.tools))
        x = self.engine.encode([text.text])[0].ids
        return [
            self._score(call, x)
            for call in executed
            if call.result is not None and passes_input_rule(call.candidate, text, self.method)
        ]

    def _sample(self, text: Text, tool: str) -> list[Candidate]:
        settings, api = self.method.of(tool), self.engine.call_tokens.api
        [tokenized] = self.engine.encode([text.text])
        x = tokenized.ids.tolist()
        prefix, suffix = prompt_ids(self.engine, self.prompts[tool])
        context = [*prefix, *x, *suffix]
        self.phase = "positions"
        logits = self.model(input_ids=self._ids([[*context, *x[:-1]]])).logits[0, len(context) - 1 :]
        p_api = logits.float().log_softmax(-1)[:, api[0]].double().exp().cpu().numpy()
        usable = tokenized.starts >= 0
        usable[0] &= bool(self.engine.call_tokens.bos)
        candidates: list[Candidate] = []
        for i in select_positions(p_api, usable, settings.tau_s, settings.k).tolist():
            keys = stream_keys(self.method.seed, text.text_id, stream_number(tool), i, settings.m)
            draws = self._draw([*context, *x[:i], *api], keys, settings.max_call_tokens)
            calls = [self._parse(ids, tool) for ids in draws]
            counts = Counter(call for call in calls if not isinstance(call, Malformed))
            start, p = int(tokenized.starts[i]), float(p_api[i])
            candidates += [Candidate(tool, start, i, p, call, count) for call, count in counts.items()]
        return candidates

    def _draw(self, context: list[int], keys: np.ndarray, max_tokens: int) -> list[list[int]]:
        """One continuation of `context` for each key; after its end a row is padded."""
        self.phase = "decode"
        drawn = self.model.generate(
            self._ids([context]),
            attention_mask=torch.ones(1, len(context), dtype=torch.long, device=self.engine.device),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=len(keys),
            max_new_tokens=max_tokens,
            eos_token_id=self.engine.tokenizer.eos_token_id,
            pad_token_id=self.engine.tokenizer.eos_token_id,
            logits_processor=[StreamSampling(keys, len(context))],
            stopping_criteria=[ClosingBracket(self.closing)],
        )
        rows: list[list[int]] = drawn[:, len(context) :].tolist()
        return rows

    def _parse(self, ids: list[int], tool: str) -> str | Malformed:
        """The input of the drawn call, or why it is no call. Padding after the ] is ignored."""
        closing = set(self.closing.tolist())
        end = next((index for index, token in enumerate(ids) if token in closing), len(ids) - 1)
        ids = ids[: end + 1]
        known = len(self.engine.call_tokens.token_strings)
        if set(ids) & set(special_ids(self.engine.tokenizer)) or max(ids) >= known:
            return Malformed("special_token")
        return parse_call(
            decode_continuations(self.engine.tokenizer, [ids])[0], tool, self.method.of(tool).takes_input
        )

    def _score(self, executed: ExecutedCall, x: np.ndarray) -> Call:
        """The three losses, from one padded batch of the three whole sequences."""
        candidate, result = executed.candidate, str(executed.result)
        bos = list(self.engine.call_tokens.bos)
        written = [linearise(candidate.tool, candidate.input, r) for r in (result, None)]
        tokenized = tokenize_continuations(self.engine.tokenizer, written)
        prefixes = [*([*bos, *call.ids] for call in tokenized), bos]
        longest = max(map(len, prefixes)) + len(x)
        ids = [[*z, *x, *[0] * (longest - len(z) - len(x))] for z in prefixes]
        mask = [[int(column < len(z) + len(x)) for column in range(longest)] for z in prefixes]
        self.phase = "plus"
        logits = self.model(input_ids=self._ids(ids), attention_mask=self._ids(mask)).logits
        logprobs = logits.float().log_softmax(-1)
        losses = []
        for row, z in enumerate(prefixes):
            targets = np.arange(candidate.token_index, min(candidate.token_index + 5, len(x)))
            target_logprobs = logprobs[row, len(z) + targets - 1, x[targets]]
            losses.append(weighted_loss(target_logprobs.double().cpu().numpy()))
        l_plus, l_call, l_empty = losses
        return scored_call(candidate, result, l_plus, l_empty, l_call)

    def _ids(self, rows: list[list[int]]) -> torch.Tensor:
        return torch.tensor(rows, device=self.engine.device)

    def _record(self, _: Any, __: Any, inputs: dict[str, Any]) -> None:
        """Before every forward, those of `generate` too: record its tokens and attention pairs."""
        rows, size = inputs["input_ids"].shape
        cache = inputs.get("past_key_values")
        cached = cache.get_seq_length() if cache is not None else 0
        logits = inputs.get("logits_to_keep") or size
        cost = Cost(rows * size, 0, rows * (size * cached + size * (size + 1) // 2), rows * logits)
        self.usage[self.phase] = self.usage.get(self.phase, Cost()) + cost


def prompt_ids(model: LanguageModel, prompt: PromptTemplate) -> tuple[list[int], list[int]]:
    """The tokens of an annotation prompt before and after the text; BOS is in front."""
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    prefix = [*model.call_tokens.bos, *model.tokenizer(prompt.prefix, **options).input_ids]
    return prefix, tokenize_continuations(model.tokenizer, [prompt.suffix])[0].ids.tolist()


def passes_input_rule(candidate: Candidate, text: Text, method: MethodConfig) -> bool:
    """False for a call of a translating tool whose input occurs only after the call."""
    applies = candidate.tool in method.input_rule
    return not (applies and only_after(candidate.input, text.text, candidate.position))


def scored_call(
    candidate: Candidate, result: str, l_plus: float, l_empty: float, l_call: float | None
) -> Call:
    """The call with its losses (nats) and the gain that follows from them."""
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
