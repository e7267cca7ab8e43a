"""A look at the calls that a model makes while it is trained (paper section 4.2).

In: held-out texts, and the training of this worker. Out: how the model continues a few of them from before
their first call, counted by tool. Decoding is greedy, except that a call begins where <API> is among the 10
most likely tokens, with each of its tokens in turn, at most once in a text. No tool is called: a row ends
with the arrow of its call, with what is no call any more, or at the end of the text.

All workers decode all rows, with the tokens that the first one chooses, so the counts are the same for any
number of workers and every ZeRO stage, and all run the same forwards. Inference itself decodes in
pipeline/inference.

Shapes: B rows, P tokens of the longest prompt, T cache slots, V vocabulary.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.engine.batching import batch_by_length
from pipeline.engine.sampler import token_ranks
from pipeline.finetuning.data.augmented_files import Indices
from pipeline.finetuning.step.training import Training
from pipeline.finetuning.watching.metrics_log import GenerationProbe
from pipeline.syntax.partial_call import callable_tools, parse_partial_call
from pipeline.syntax.tokenizer import CallTokens, decode_continuations, special_ids, tokenize_continuations
from tools_service.contract.declarations import in_order
from tools_service.syntax.calls import API, END, Malformed, split_calls

logger = logging.getLogger(__name__)

_K = 10  # section 4.2
_MALFORMED, _UNFINISHED, _WITHOUT_CALL = "malformed", "unfinished", "without_call"


@dataclass(frozen=True, slots=True)
class ProbePrompt:
    """The tokens of a text before its first call, BOS included, and the tool of that call."""

    tokens: Indices
    tool: str


def choose_prompts(
    texts: Sequence[str], plain: Sequence[str], tokenizer: Any, tools: Sequence[str], config: FinetuneConfig
) -> list[ProbePrompt]:
    """The prompts of the first `probe_prompts` held-out texts with words before their first call.

    `texts` [n] have the calls, `plain` [n] do not; `tools` are those, beside the installed ones, whose calls
    the texts may have. A prompt is cut at its beginning to leave room for `probe_tokens`.
    """
    room = config.sequence_length - config.probe_tokens
    bos = np.array(CallTokens.of(tokenizer).bos, dtype=np.int64)
    prompts: list[ProbePrompt] = []
    for text, without in zip(texts, plain, strict=True):
        if len(prompts) == config.probe_prompts or room <= len(bos):
            break
        before, tool = _first_call(text, without, tools)
        if tool and before.strip():
            ids = tokenize_continuations(tokenizer, [before])[0].ids
            prompts.append(ProbePrompt(np.concatenate([bos, ids[len(bos) - room :]]), tool))
    return prompts


def _first_call(text: str, plain: str, tools: Sequence[str]) -> tuple[str, str]:
    """The part of ``" " + x`` before the first call in `text`, and the call's tool; without one: no tool.

    Call syntax that is in `plain` is text.
    """
    before, rest = "", " " + plain
    for part in split_calls(text, tools):
        if not rest.startswith(part) and part.startswith(API) and part.endswith(END):
            return before, part[len(API) : part.index("(")]
        before, rest = before + part, rest.removeprefix(part)
    return before, ""


def tools_of_texts(texts: Sequence[str], tools: Sequence[str]) -> dict[str, bool]:
    """The tools that a continuation can name, and whether each takes an input.

    Of a tool in C* that is not installed here, the calls tell.
    """
    installed = callable_tools()
    return installed | {
        tool: not any(f"{API}{tool}()" in text for text in texts) for tool in tools if tool not in installed
    }


@dataclass(slots=True)
class _Row:
    """One continuation. `outcome` is set at its end: the name of a tool, or why there is no call."""

    text: list[int] = field(default_factory=list)
    call: list[int] = field(default_factory=list)  # from <API> on
    greedy: int = 0  # the token that would have come in place of <API>
    outcome: str | None = None


class Probe:
    """Continues the prompts of one run."""

    def __init__(self, training: Training, prompts: Sequence[ProbePrompt], tools: Mapping[str, bool]) -> None:
        self._training, self._prompts, self._tools = training, prompts, tools
        self._tokenizer, self._limit = training.tokenizer, training.config.probe_tokens
        self._call_tokens = CallTokens.of(self._tokenizer)
        model = training.engine.module
        configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        self._eos = {*ids, self._tokenizer.eos_token_id} - {None}
        self._special = {*special_ids(self._tokenizer), *self._eos}
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # of an adapter
        self._accepted = set(inspect.signature(base.forward).parameters)

    def run(self, step: int) -> GenerationProbe | None:
        """Continue all prompts; None if there is none. All workers must call this together."""
        if not self._prompts or "past_key_values" not in self._accepted:
            return None
        lengths = [len(prompt.tokens) + self._limit for prompt in self._prompts]
        config = self._training.config
        # As many tokens at once as a forward in training.
        batches = batch_by_length(
            lengths, config.micro_batch_size * config.sequence_length, forwards=self._limit
        )
        outcomes: dict[int, str] = {}
        for indices in batches:
            found = self._decode([self._prompts[index].tokens for index in indices])
            outcomes |= dict(zip(indices, found, strict=True))
        counts, expected = Counter(outcomes.values()), Counter(prompt.tool for prompt in self._prompts)
        return GenerationProbe(
            step=step,
            prompts=len(self._prompts),
            calls={tool: counts[tool] for tool in in_order({*counts, *expected} & self._tools.keys())},
            malformed=counts[_MALFORMED],
            unfinished=counts[_UNFINISHED],
            without_call=counts[_WITHOUT_CALL],
            same_tool=sum(outcomes[i] == prompt.tool for i, prompt in enumerate(self._prompts)),
            expected={tool: expected[tool] for tool in in_order(expected)},
        )

    @torch.no_grad()
    def _decode(self, prompts: Sequence[Indices]) -> list[str]:
        """The outcome of each prompt [B]."""
        self._training.engine.eval()
        width = max(map(len, prompts))
        ids = np.zeros((len(prompts), width), dtype=np.int64)  # [B, P], padded on the left
        visible = np.zeros((len(prompts), width), dtype=bool)  # [B, T]
        for row, tokens in enumerate(prompts):
            ids[row, width - len(tokens) :], visible[row, width - len(tokens) :] = tokens, True
        positions = np.maximum(visible.cumsum(axis=1) - 1, 0)  # [B, P]
        rows, cache = [_Row() for _ in prompts], None
        while True:
            output = self._forward(ids, positions, visible, cache)
            cache = output.past_key_values
            chosen = self._choose(output.logits[:, -1], rows)
            for row, (token, rank) in enumerate(chosen):
                if rolled_back := self._advance(rows[row], token, rank):
                    # Their slots stay in the cache, and nothing sees them any more.
                    visible[row, np.flatnonzero(visible[row])[-rolled_back:]] = False
            if all(row.outcome for row in rows):
                return [row.outcome or "" for row in rows]
            ids = np.array([[(row.call or row.text or [0])[-1]] for row in rows])  # [B, 1]
            positions = visible.sum(axis=1, keepdims=True)
            running = np.array([[row.outcome is None] for row in rows])
            positions, ids = np.where(running, positions, 0), np.where(running, ids, 0)
            visible = np.concatenate([visible, running], axis=1)

    def _forward(self, ids: Indices, positions: Indices, visible: np.ndarray, cache: Any) -> Any:
        device = self._training.device
        inputs = {
            "attention_mask": torch.from_numpy(visible.astype(np.int64)).to(device),
            "position_ids": torch.from_numpy(positions).to(device),
            "past_key_values": cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        # Some architectures take the positions from the mask.
        accepted = {name: value for name, value in inputs.items() if name in self._accepted}
        return self._training.engine(input_ids=torch.from_numpy(ids).to(device), **accepted)

    def _choose(self, logits: torch.Tensor, rows: Sequence[_Row]) -> list[tuple[int, int]]:
        """The most likely token of each row, and the rank of its next token of <API> from 0."""
        api = self._call_tokens.api
        next_api = [api[len(row.call)] if len(row.call) < len(api) else api[0] for row in rows]
        logits = logits[:, : len(self._call_tokens.token_strings)].float()  # [B, V]
        ranks = token_ranks(logits, torch.tensor(next_api, device=logits.device))
        chosen = torch.stack([logits.argmax(dim=1), ranks])  # [2, B]
        dist.broadcast(chosen, src=0)  # rounding may differ between workers
        return [(token, rank) for token, rank in chosen.T.tolist()]

    def _advance(self, row: _Row, token: int, rank: int) -> int:
        """Append the next token to a row; returns how many of its last tokens are rolled back."""
        api, rolled_back = self._call_tokens.api, 0
        if row.outcome is not None:
            return 0
        if len(row.call) < len(api):
            if not row.call:
                row.greedy = token
            if rank < _K:
                row.call.append(api[len(row.call)])
            else:  # <API> is not completed, and the text goes on as if it had not begun
                rolled_back, row.call = len(row.call), []
                row.text.append(row.greedy)
                if row.greedy in self._eos:
                    row.outcome = _WITHOUT_CALL
        else:
            row.call.append(token)
            row.outcome = self._call_outcome(row.call)
        if row.outcome is None and len(row.text) + len(row.call) >= self._limit:
            row.outcome = _UNFINISHED if row.call else _WITHOUT_CALL
        return rolled_back

    def _call_outcome(self, call: Sequence[int]) -> str | None:
        if call[-1] in self._special:
            return _MALFORMED
        [written] = decode_continuations(self._tokenizer, [call])
        parsed = parse_partial_call(written[len(API) :], self._tools)
        if isinstance(parsed, Malformed):
            return _MALFORMED
        return None if parsed is None else parsed.tool
