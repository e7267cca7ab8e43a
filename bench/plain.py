"""Annotation as people write it: `generate` at every chosen position, three full forwards for every call.

In: texts, a transformers model, the method's settings. Out: the scored calls of each text, and what was run.
A position's m draws are one batch of `generate` with its cache; every candidate is scored at every position
by one batch of the three whole sequences. Nothing is shared between positions, calls, texts or tools.

Its random numbers are the engine's: a logits processor leaves of each distribution the token that the draw's
own stream picks, so both procedures must draw the same calls, and their kept calls can be compared.
Written for tokenizers whose ``<API>`` is one token.
"""

from __future__ import annotations

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
from pipeline.syntax.calls import END, Malformed, linearise, parse_call
from pipeline.syntax.prompts import load_prompt
from pipeline.syntax.tokenizer import decode_continuations, tokenize_continuations
from tools_service.tools.client import ToolClient
from tools_service.tools.contract import TOOL_NAMES, ToolName


class Streams(LogitsProcessor):
    """Leaves row j of a batch the one token that stream j picks from its distribution."""

    def __init__(self, keys: np.ndarray, start: int) -> None:
        """`start` tokens stand before the first that is drawn."""
        self.keys, self.start = keys, start

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        u = torch.from_numpy(uniforms(self.keys, input_ids.shape[1] - self.start)).to(scores.device)
        picked = invert_cdf(scores.float(), u[:, None])
        return torch.full_like(scores, -torch.inf).scatter_(1, picked, 0.0)


class Closed(StoppingCriteria):
    """A row is done with its first token that has a ] in it."""

    def __init__(self, closing: torch.Tensor) -> None:
        self.closing = closing

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> torch.BoolTensor:
        return torch.isin(input_ids[:, -1], self.closing)


class Plain:
    """The plain procedure over one model; `usage` is what its forwards cost, by phase."""

    def __init__(self, model: LanguageModel, tools: ToolClient, method: MethodConfig) -> None:
        if len(model.call_tokens.api) != 1:
            raise SystemExit("the plain procedure is written for tokenizers whose <API> is one token")
        self.engine, self.model, self.tools, self.method = model, model.model, tools, method
        self.prompts = {tool: load_prompt(tool, method.prompts) for tool in method.tools}
        closing = [token for token, piece in enumerate(model.call_tokens.token_strings) if END in piece]
        self.closing = torch.tensor(closing, device=model.device)
        self.phase: Phase = "positions"
        self.usage: dict[Phase, Cost] = {}
        self.candidates = 0

    @torch.inference_mode()
    def annotate(self, texts: Sequence[Text]) -> list[list[Call]]:
        """The scored calls of each text."""
        hook = self.model.register_forward_pre_hook(self._count, with_kwargs=True)
        try:
            tools = self.method.tools
            return [[call for tool in tools for call in self._annotate(text, tool)] for text in texts]
        finally:
            hook.remove()

    def _annotate(self, text: Text, tool: ToolName) -> list[Call]:
        chosen = select(tool, text, self.method)
        if not chosen.chosen:
            return []
        candidates = self._sample(text, tool)
        self.candidates += len(candidates)
        [executed] = execute([candidates], [chosen.date], self.tools)
        x = self.engine.encode([text.text])[0].ids
        return [self._score(call, x) for call in executed if call.result is not None and _passes(call, text)]

    def _sample(self, text: Text, tool: ToolName) -> list[Candidate]:
        settings, prompt, bos = self.method.of(tool), self.prompts[tool], list(self.engine.call_tokens.bos)
        [pieces] = self.engine.encode([text.text])
        x = pieces.ids.tolist()
        plain = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        before = [*bos, *self.engine.tokenizer(prompt.prefix, **plain).input_ids, *x]
        before += tokenize_continuations(self.engine.tokenizer, [prompt.suffix])[0].ids.tolist()
        self.phase = "positions"
        logits = self.model(input_ids=self._ids([[*before, *x[:-1]]])).logits[0, len(before) - 1 :]
        p_api = logits.float().log_softmax(-1)[:, self.engine.call_tokens.api[0]].double().exp().cpu().numpy()
        usable = pieces.starts >= 0
        usable[0] &= bool(bos)
        found: list[Candidate] = []
        for i in select_positions(p_api, usable, settings.tau_s, settings.k).tolist():
            keys = stream_keys(self.method.seed, text.text_id, TOOL_NAMES.index(tool), i, settings.m)
            context = [*before, *x[:i], *self.engine.call_tokens.api]
            drawn = self._draw(context, keys, settings.max_call_tokens)
            counts = Counter(
                call for one in drawn if not isinstance(call := self._read(one, tool), Malformed)
            )
            start, p = int(pieces.starts[i]), float(p_api[i])
            found += [Candidate(tool, start, i, p, call, draws) for call, draws in counts.items()]
        return found

    def _draw(self, context: list[int], keys: np.ndarray, most: int) -> list[list[int]]:
        self.phase = "decode"
        drawn = self.model.generate(
            self._ids([context]),
            attention_mask=torch.ones(1, len(context), dtype=torch.long, device=self.engine.device),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=len(keys),
            max_new_tokens=most,
            eos_token_id=self.engine.tokenizer.eos_token_id,
            pad_token_id=self.engine.tokenizer.eos_token_id,
            logits_processor=[Streams(keys, len(context))],
            stopping_criteria=[Closed(self.closing)],
        )
        rows: list[list[int]] = drawn[:, len(context) :].tolist()
        return rows

    def _read(self, ids: list[int], tool: ToolName) -> str | Malformed:
        """The call's input. What stands behind its ] is padding."""
        closing = set(self.closing.tolist())
        end = next((place for place, token in enumerate(ids) if token in closing), len(ids) - 1)
        ids = ids[: end + 1]
        known = len(self.engine.call_tokens.token_strings)
        if set(ids) & set(self.engine.tokenizer.all_special_ids) or max(ids) >= known:
            return Malformed("special_token")
        return parse_call(decode_continuations(self.engine.tokenizer, [ids])[0], tool)

    def _score(self, executed: ExecutedCall, x: np.ndarray) -> Call:
        """One padded batch of the three sequences, whole, with logits everywhere."""
        candidate, result = executed.candidate, str(executed.result)
        written = [linearise(candidate.tool, candidate.input, r) for r in (result, None)]
        bos = list(self.engine.call_tokens.bos)
        prefixes = [[*bos, *one.ids] for one in tokenize_continuations(self.engine.tokenizer, written)] + [
            bos
        ]
        longest = max(map(len, prefixes)) + len(x)
        ids = [[*z, *x, *[0] * (longest - len(z) - len(x))] for z in prefixes]
        mask = [[int(column < len(z) + len(x)) for column in range(longest)] for z in prefixes]
        self.phase = "plus"
        logprobs = self.model(input_ids=self._ids(ids), attention_mask=self._ids(mask)).logits.float()
        logprobs = logprobs.log_softmax(-1)
        losses = []
        for row, z in enumerate(prefixes):
            targets = np.arange(candidate.token_index, min(candidate.token_index + 5, len(x)))
            found = logprobs[row, len(z) + targets - 1, x[targets]].double().cpu().numpy()
            losses.append(weighted_loss(found))
        l_plus, l_call, l_empty = losses
        return Call(
            tool=candidate.tool,
            position=candidate.position,
            p_api=candidate.p_api,
            input=candidate.input,
            result=result,
            l_plus=l_plus,
            l_empty=l_empty,
            l_call=l_call,
            gain=min(l_empty, l_call) - l_plus,
        )

    def _ids(self, rows: list[list[int]]) -> torch.Tensor:
        return torch.tensor(rows, device=self.engine.device)

    def _count(self, _: Any, __: Any, inputs: dict[str, Any]) -> None:
        """Before every forward, `generate`'s too: the tokens of its batch, and what they see."""
        rows, size = inputs["input_ids"].shape
        cache = inputs.get("past_key_values")
        known = cache.get_seq_length() if cache is not None else 0
        asked = inputs.get("logits_to_keep") or size
        cost = Cost(rows * size, 0, rows * (size * known + size * (size + 1) // 2), rows * asked)
        self.usage[self.phase] = self.usage.get(self.phase, Cost()) + cost


def _passes(executed: ExecutedCall, text: Text) -> bool:
    """The MT rule."""
    candidate = executed.candidate
    return candidate.tool != "MT" or not only_after(candidate.input, text.text, candidate.position)
