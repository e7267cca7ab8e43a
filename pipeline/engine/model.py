"""The language model engine: what the steps ask of M, at little more than the least work (paper section 2).

In: token ids, and a transformers causal LM. Out: hidden states over a shared cache (`forward`, used by
tree.py and sequences.py), logits, log-probabilities of given tokens, and what all that cost. It knows no
tools, thresholds or losses, and nothing of Ray. How sequences are composed is said in docs/method.md;
that the model really honours masks, positions and a cache given by hand is checked when it is loaded
(probe.py).

Shapes: B rows, Q tokens fed now, T columns of the cache after them, D hidden size, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.base.records import Cost, Phase
from pipeline.engine.errors import ModelError
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.transfer import sent
from pipeline.engine.unpadding import Handed, UnpaddedLayout
from pipeline.syntax.grammar import automaton, call_head
from pipeline.syntax.prompts import PromptTemplate
from pipeline.syntax.tokenizer import CallTokens, TokenizedText, tokenize_continuations
from tools_service.tools.contract import ToolName

logger = logging.getLogger(__name__)

CPU_TOKENS = 16_384  # batch_tokens on a CPU, if none are given
_LOGITS = 2**24  # most logits alive at once: 64 MiB in float32, whatever the vocabulary
_FULL = 0.95  # share of real tokens from which on leaving padding out is not worth the copies
_BUCKET = 64  # columns of a cache are shown by as many to a GPU: its kernels want few and aligned shapes
_START = 128  # what starting a forward costs, in tokens


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tool's prompt: keys and values of what stands before the text, ids of what stands after it."""

    cache: KVCache
    suffix: np.ndarray

    @property
    def length(self) -> int:
        """Tokens before the text, BOS included."""
        return self.cache.length


class LanguageModel:
    """One causal LM with its tokenizer. Not for use by several threads at once."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_batch_tokens: int | None = None
    ) -> None:
        self.model = model
        self.model.train(False)
        self.tokenizer = tokenizer
        self.max_batch_tokens = max_batch_tokens or CPU_TOKENS
        self.device = model.device
        self.eager = model.config._attn_implementation == "eager"  # compares a token with later ones as well
        self.bucket = _BUCKET if model.device.type == "cuda" else 1
        self.call_tokens = CallTokens.of(tokenizer)
        self.max_positions = max_positions(model.config)
        self.vocabulary: int = model.config.get_text_config().vocab_size
        if len(tokenizer) > self.vocabulary:
            message = f"the tokenizer has {len(tokenizer)} tokens, the model {self.vocabulary} embeddings"
            raise ModelError(message)
        self.usage: dict[Phase, Cost] = {}
        self._prompts: dict[PromptTemplate, Prompt] = {}
        self._automata: dict[ToolName, np.ndarray] = {}
        self.packs, self.handed, self.separate_head = False, Handed(), False

    def shrink(self, least: int, why: str) -> None:
        """Half as many tokens in a forward from now on, because a forward found no room.

        Raises ModelError where even the smallest batch, of `least` tokens, was run by itself.
        """
        if self.max_batch_tokens <= least:
            raise ModelError(f"out of memory with {least} tokens in a forward: {why}")
        self.max_batch_tokens = max(least, self.max_batch_tokens // 2)
        logger.warning("out of memory: forwards have at most %d tokens from now on", self.max_batch_tokens)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """The array on the model's device, without waiting for what that is doing."""
        return sent(array, self.device)

    def encode(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Each text x as the tokens of ``" " + x``; `starts` are character offsets in x, -1 where no call
        may stand.

        Of several tokens at one offset of x (a space of its own, then the first word) only the first may
        have calls.
        """
        encoded = tokenize_continuations(self.tokenizer, [" " + text for text in texts])
        # From offsets in " " + x to offsets in x, where 0 and 1 would both be 0: the first token has it.
        return [TokenizedText(s.ids, np.where(s.starts == 1, -1, s.starts - (s.starts > 1))) for s in encoded]

    def prompt(self, template: PromptTemplate) -> Prompt:
        """The tool's prompt with its keys and values, computed once."""
        if template not in self._prompts:
            before, suffix = self._around(template)
            cache, ids = KVCache(), self.tensor(before)[None]
            depth = torch.arange(len(before), device=self.device)[None]
            self.forward(ids, depth, causal(len(before), self.device), cache, "prompt", len(before))
            self._prompts[template] = Prompt(cache, suffix)
        return self._prompts[template]

    def max_text_tokens(self, template: PromptTemplate, max_call_tokens: int) -> int:
        """Most tokens a text may have to be sampled with this prompt: it stands in the context twice."""
        fixed = sum(map(len, self._around(template))) + len(self.call_tokens.api) + max_call_tokens
        return max(0, (self.max_positions - fixed) // 2)

    def _around(self, template: PromptTemplate) -> tuple[np.ndarray, np.ndarray]:
        """Ids before and after the text. The first begin the sequence, so they are not a continuation."""
        plain = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        first = self.tokenizer(template.prefix, **plain).input_ids
        return np.array([*self.call_tokens.bos, *first]), tokenize_continuations(
            self.tokenizer, [template.suffix]
        )[0].ids

    def automaton(self, tool: ToolName) -> np.ndarray:
        """grammar.automaton of the tool for this vocabulary, made once."""
        if tool not in self._automata:
            special = self.tokenizer.all_special_ids
            strings = self.call_tokens.token_strings
            self._automata[tool] = automaton(call_head(tool), strings, special, self.vocabulary)
        return self._automata[tool]

    @torch.inference_mode()
    def forward(
        self,
        ids: torch.Tensor,  # [B, Q] int64
        depth: torch.Tensor,  # [B, Q] position ids
        allowed: torch.Tensor,  # [B, Q, T] bool: which columns each token sees, itself included
        cache: KVCache,
        phase: Phase,
        real: int,  # tokens that are not padding, for the counts
        where: np.ndarray | None = None,  # [B, Q] bool: which ones those are, if padding may be left out
    ) -> torch.Tensor:  # [B, Q, D]
        """Runs tokens behind `cache`, which grows by their Q columns; returns what `logits` takes."""
        dtype, cache.bucket = self.model.dtype, self.bucket
        shown = -(-allowed.shape[2] // self.bucket) * self.bucket
        mask = torch.empty(*allowed.shape[:2], shown, dtype=dtype, device=self.device)
        mask.fill_(torch.finfo(dtype).min)
        mask[..., : allowed.shape[2]].masked_fill_(allowed, 0)
        inputs: dict[str, Any] = {"attention_mask": mask[:, None], "past_key_values": cache}
        packed = where is not None and self.leaves_padding_out(real, ids.numel())
        if packed and where is not None:
            cache.places = places = UnpaddedLayout.of(where, self.device)
            inputs |= {"position_ids": places.pack(depth), "places": places}
            features = places.spread(self.features(places.pack(ids), **inputs))
            cache.places = None
        else:
            features = self.features(ids, position_ids=depth, **inputs)
        self.spend(phase, self.cost(real, ids.numel(), ids.numel() * allowed.shape[2], packed))
        cache.length += ids.shape[1]
        return features

    def leaves_padding_out(self, real: int, size: int) -> bool:
        """Whether a batch of this size, of which `real` tokens are no padding, is run without the padding."""
        return self.packs and real <= _FULL * size

    def cost(self, real: int, size: int, seen: int, packed: bool) -> Cost:
        """Of a forward, or of some rows of it, without the logits that are asked for afterwards."""
        padding = 0 if packed else size - real
        return Cost(real, padding, seen, 0 if self.separate_head else real + padding)

    def spend(self, phase: Phase, cost: Cost) -> None:
        """Add to what has been spent since the model was made."""
        self.usage[phase] = self.usage.get(phase, Cost()) + cost

    def logits(self, features: torch.Tensor, phase: Phase | None = None) -> Iterator[torch.Tensor]:
        """Float32 logits [rows, V] of features [M, D], a bounded number of rows at a time and in order.

        Counted under `phase`, if any.
        """
        if phase and self.separate_head:
            self.spend(phase, Cost(logits=len(features)))
        model: Any = self.model
        head = model.get_output_embeddings() if self.separate_head else torch.nn.Identity()
        with torch.inference_mode():
            for chunk in torch.split(features, max(1, _LOGITS // self.vocabulary)):
                yield head(chunk).to(self.device).float()

    def log_probability(self, features: torch.Tensor, targets: torch.Tensor, phase: Phase) -> torch.Tensor:
        """Natural log of p(target) [M], float32, after each of features [M, D]."""
        parts, done = [], 0
        for logits in self.logits(features, phase):
            chosen = targets[done : done + len(logits), None]
            parts.append(logits.gather(1, chosen)[:, 0] - logits.logsumexp(1))
            done += len(logits)
        return torch.cat(parts) if parts else torch.zeros(0)

    def batch_by_length(
        self, lengths: Sequence[int], shared: int = 0, forwards: int = 1, share: float = 1.0
    ) -> list[list[int]]:
        """Indices grouped into batches of like length, the longest first, at the least cost.

        A batch costs its rows times its longest, and what it takes to start its `forwards`; its rows, each
        `shared` longer, stay under this `share` of `max_batch_tokens` when padded. (Shortest path over the sorted
        lengths.)
        """
        most = int(self.max_batch_tokens * share)
        order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
        cost = np.full(len(order) + 1, np.inf)
        cost[0], origin = 0.0, np.zeros(len(order) + 1, dtype=np.int64)
        for first in range(len(order)):
            longest = lengths[order[first]]
            rows = np.arange(1, 1 + max(1, min(len(order) - first, most // max(1, longest + shared))))
            reached = cost[first] + _START * forwards + rows * longest
            better = reached < cost[first + rows]
            cost[first + rows[better]], origin[first + rows[better]] = reached[better], first
        ends, end = [], len(order)
        while end:
            ends.append((origin[end], end))
            end = int(origin[end])
        return [order[first:end].tolist() for first, end in reversed(ends)]

    def features(self, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """What the output embedding takes, or the logits where the model does more than that to them."""
        with self.handed.meanwhile(inputs.get("places")):
            if self.separate_head:
                features: torch.Tensor = self.model.base_model(input_ids=ids, **inputs)[0]
            else:
                features = self.model(input_ids=ids, **inputs).logits
        return features.to(self.device)


def causal(length: int, device: torch.device) -> torch.Tensor:
    """[1, length, length]: every token sees itself and those before it."""
    return torch.ones(1, length, length, dtype=torch.bool, device=device).tril_()


def pad(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of ids as one array [B, longest], zeros behind."""
    out = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out


def max_positions(config: Any) -> int:
    """The longest context the model is exact for: its positions, or a shorter attention window."""
    names = ("max_position_embeddings", "sliding_window", "window_size", "attention_chunk_size")
    found = [getattr(config, name, None) for name in names]
    return min((value for value in found if isinstance(value, int) and value > 0), default=2**31)
