"""The language model engine: what the steps ask of M, at close to the least work.

In: token ids, and a transformers causal LM. Out: hidden states over a shared KV cache
(`forward`, used by tree_attention.py and logprobs.py), logits, log-probabilities of given
tokens. `usage` counts what that cost. docs/method.md says how sequences are composed;
loading.py checks that a model honours masks, positions and a cache given by hand. The
engine knows no tools, thresholds or losses.

Shapes: B rows, Q query slots, T cache slots after them, M tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.base.records import Cost, Phase
from pipeline.engine.batching import batch_by_length
from pipeline.engine.errors import ModelError
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.last_layer import only_wanted
from pipeline.engine.limits import (
    max_positions,
    require_tokenizer_fits,
    text_config,
)
from pipeline.engine.unpadding import (
    UnpaddedLayout,
    to_device,
    unpadded_forward,
)
from pipeline.engine.usage import Usage
from pipeline.syntax.grammar import Opening, automaton, opening
from pipeline.syntax.tokenizer import (
    CallTokens,
    TokenizedText,
    special_ids,
    tokenize_continuations,
    tokenize_prompt,
)
from tools_service.syntax.prompts import PromptTemplate

logger = logging.getLogger(__name__)

# max_batch_tokens on a CPU, if none is given.
CPU_BATCH_TOKENS = 16_384

# The texts of a few batches.
_TEXTS_KEPT = 1_024
# Most logits alive at once: 64 MiB in float32, whatever the vocabulary. A GPU reads the whole
# output embedding for each part: with less than some 300 rows, that takes longer than the product.
_LOGITS_ALIVE, _LOGITS_ALIVE_ON_GPU = 2**24, 2**26
# Of these a CPU sums so many at a time: 8 MiB in float64.
_BLOCK_LOGITS = 2**20
# From this share of real tokens on, unpadding costs more in copies than it saves.
_DENSE_SHARE = 0.95
# GPU attention kernels want few, aligned shapes: views of the cache grow by so many slots.
_GPU_SLOT_MULTIPLE = 64


@dataclass(frozen=True, slots=True)
class PromptCache:
    """A prompt: keys and values of its part before the text, ids of the part after it.

    Without a prompt nothing is cached, and BOS, if there is one, is the suffix: the text
    stands in a context once and not twice.
    """

    cache: KVCache
    suffix: ndarray
    has_prompt: bool = True

    @property
    def length(self) -> int:
        """Tokens before the text, BOS included."""
        return self.cache.length

    @property
    def is_empty(self) -> bool:
        """Whether nothing stands before the text: no prompt, and no BOS."""
        return not self.has_prompt and not len(self.suffix)

    def context_length(self, text: int) -> int:
        """Tokens of the context of a text with so many tokens."""
        return self.length + (1 + self.has_prompt) * text + len(self.suffix)


class LanguageModel:
    """One causal LM with its tokenizer. Not for use by several threads at once.

    Building one checks nothing: loading.py does, and sets what is False here.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_batch_tokens: int | None = None,
    ) -> None:
        """Raises ModelError if the tokenizer is larger than the model's embeddings, and
        TokenizerError if the tokenizer cannot carry calls."""
        self.model = model
        self.model.train(False)
        self.tokenizer = tokenizer
        self.device = model.device
        self.max_batch_tokens = max_batch_tokens or CPU_BATCH_TOKENS
        self.max_positions = max_positions(model.config)
        self.vocabulary_size: int = text_config(model.config).vocab_size
        require_tokenizer_fits(model.config, tokenizer)
        # How the tokenizer spells calls; refused here if it cannot.
        self.call_tokens = CallTokens.of(tokenizer)
        self.usage = Usage()
        # Logits are the output embedding of the last hidden states, and nothing more.
        self.separate_head = False
        # Tokens may be fed without their padding, and rows may share a prompt.
        self.can_unpad = False
        self.can_share_prompts = False
        # The last layer may run wanted tokens only.
        self.can_leave_out_unwanted = False
        # Unpadded sequences are scored without padding in attention, too.
        self.ragged_attention = False
        # Eager attention compares a token with later ones as well, masked or not.
        self.eager_attention = model.config._attn_implementation == "eager"
        on_gpu = self.device.type == "cuda"
        self.slot_multiple = _GPU_SLOT_MULTIPLE if on_gpu else 1
        self.logits_alive = _LOGITS_ALIVE_ON_GPU if on_gpu else _LOGITS_ALIVE
        # Computed once, kept as long as the model: prompts' keys and values, automata.
        self._prompts: dict[PromptTemplate, PromptCache] = {}
        self._prompt_ids: dict[PromptTemplate, tuple[ndarray, ndarray]] = {}
        self._automata: dict[tuple[str, bool], ndarray] = {}
        self._openings: dict[str, Opening] = {}
        # The tokens of the last texts: each tool and step asks for them again.
        self._encoded: dict[str, TokenizedText] = {}

    def shrink(self, smallest: int, reason: str) -> None:
        """Halve `max_batch_tokens` after a forward ran out of memory.

        Raises ModelError if even the smallest batch, of `smallest` tokens, ran alone.
        """
        if self.max_batch_tokens <= smallest:
            raise ModelError(
                f"out of memory with {smallest} tokens in a forward: {reason}"
            )
        # Halving finds the right size in few steps and never skips the smallest batch.
        self.max_batch_tokens = max(smallest, self.max_batch_tokens // 2)
        logger.warning(
            "out of memory: forwards have at most %d tokens from now on",
            self.max_batch_tokens,
        )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def tensor(self, array: ndarray) -> Tensor:
        """`array` on the model's device, without stalling it."""
        return to_device(array, self.device)

    def encode(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Each text x as the tokens of ``" " + x``; `starts` are character offsets in x,
        -1 where no call may stand.

        Of several tokens at one offset of x (a lone space, then the first word) only the
        first may have calls.
        """
        encoded = {
            text: self._encoded[text] for text in texts if text in self._encoded
        }
        missing = [text for text in dict.fromkeys(texts) if text not in encoded]
        tokenized = tokenize_continuations(
            self.tokenizer, [" " + text for text in missing]
        )
        for text, s in zip(missing, tokenized, strict=True):
            # From offsets in s = " " + x to offsets in x. Offsets 0 and 1 would both become
            # 0: the token at 0 has it, one at 1 gets -1.
            starts = np.where(s.starts == 1, -1, s.starts - (s.starts > 1))
            encoded[text] = self._encoded[text] = TokenizedText(s.ids, starts)
        # The oldest are forgotten.
        for text in list(self._encoded)[:-_TEXTS_KEPT]:
            del self._encoded[text]
        return [encoded[text] for text in texts]

    def prompt(self, template: PromptTemplate | None) -> PromptCache:
        """The prompt with its keys and values, computed once. None: no prompt."""
        if template is None:
            bos = np.array(self.call_tokens.bos, dtype=np.int64)
            return PromptCache(KVCache(), bos, has_prompt=False)
        if template not in self._prompts:
            prefix, suffix = self._tokenized(template)
            cache = KVCache()
            ids = self.tensor(prefix)[None]
            position_ids = torch.arange(len(prefix), device=self.device)[None]
            mask = causal_mask(len(prefix), self.device)
            self.forward(
                ids, position_ids, mask, cache, "prompt", [len(prefix)]
            )
            self._prompts[template] = PromptCache(cache, suffix)
        return self._prompts[template]

    def _tokenized(self, template: PromptTemplate) -> tuple[ndarray, ndarray]:
        """The prompt's ids before and after the text, tokenised once."""
        if template not in self._prompt_ids:
            ids = tokenize_prompt(self.tokenizer, template)
            self._prompt_ids[template] = ids
        return self._prompt_ids[template]

    def max_text_tokens(
        self,
        template: PromptTemplate | None,
        max_call_tokens: int,
    ) -> int:
        """Most tokens a text may have to be sampled with this prompt, or without one.

        The text stands in the context twice: in the prompt and in its own copy.
        """
        fixed = len(self.call_tokens.api) + max_call_tokens
        if template is None:
            fixed += len(self.call_tokens.bos)
            return max(0, self.max_positions - fixed)
        prefix, suffix = self._tokenized(template)
        fixed += len(prefix) + len(suffix)
        return max(0, (self.max_positions - fixed) // 2)

    def automaton(self, head: str, *, ends_at_arrow: bool = False) -> ndarray:
        """The automaton (syntax/grammar.py) of calls that begin with `head`, made once."""
        key = head, ends_at_arrow
        if key not in self._automata:
            self._automata[key] = automaton(
                head,
                self.call_tokens.token_strings,
                special_ids(self.tokenizer),
                self.vocabulary_size,
                ends_at_arrow=ends_at_arrow,
            )
        return self._automata[key]

    def opening(self, text: str) -> Opening:
        """The tokens that can write `text`, the beginning of a call; found once."""
        if text not in self._openings:
            self._openings[text] = opening(
                text,
                self.call_tokens.token_strings,
                special_ids(self.tokenizer),
            )
        return self._openings[text]

    @torch.inference_mode()
    def forward(
        self,
        ids: Tensor,  # [B, Q] int64
        position_ids: Tensor,  # [B, Q]
        attention_mask: Tensor,  # [B, Q, T] bool: slots a token sees, its own too
        cache: KVCache,
        phase: Phase,
        tokens_by_row: Sequence[int],  # [B] real tokens
        is_token: ndarray | None = None,  # [B, Q] bool: the real tokens
        causal: bool = False,
        wanted: ndarray | None = None,  # [B, Q] bool
    ) -> Tensor:  # [B, Q, D]
        """Run tokens behind `cache`, which grows by Q slots; hidden states for `logits`.

        Padding is fed as well unless `is_token` says where it is. `causal` says that the
        mask is causal, real tokens stand first in their rows, and `cache` was empty. The
        hidden states of tokens that are not `wanted` mean nothing.
        """
        costs = self.forward_costs(tokens_by_row, attention_mask, cache, causal)
        # The mask has as many columns as the cache will show slots.
        cache.slot_multiple = self.slot_multiple
        inputs: dict[str, Any] = {"past_key_values": cache}
        # Linear layers then run real tokens only; attention pads and unpads by itself.
        if is_token is not None and self.unpads(
            sum(tokens_by_row), ids.numel(), cache
        ):
            causal = causal and bool(cache.prompts)
            layout = UnpaddedLayout.of(
                is_token,
                self.device,
                causal,
                prompts=cache.tokens(tokens_by_row),
            )
            mask = (
                unused_mask(self.model.dtype, self.device)
                if causal
                else self._additive(attention_mask)
            )
            tokens = self.hidden_states(
                layout.unpad(ids),
                layout,
                None if wanted is None else wanted[is_token],
                position_ids=layout.unpad(position_ids),
                attention_mask=mask,
                **inputs,
            )
            hidden_states = layout.pad(tokens)
        else:
            hidden_states = self.hidden_states(
                ids,
                wanted=wanted,
                position_ids=position_ids,
                attention_mask=self._additive(attention_mask),
                **inputs,
            )
        # Recorded after the forward: one that runs out of memory costs nothing.
        self.usage.record(phase, sum(costs, Cost()))
        cache.length += ids.shape[1]
        return hidden_states

    def hidden_states(
        self,
        ids: Tensor,
        layout: UnpaddedLayout | None = None,
        wanted: ndarray | None = None,  # bool, of as many tokens as `ids`
        **inputs: Any,
    ) -> Tensor:
        """What the output embedding takes, [B, Q, D]; logits if there is no separate head.

        What is returned for tokens that are not `wanted`, if it is given, means nothing.
        """
        index = None
        if wanted is not None and self.can_leave_out_unwanted:
            index = self.tensor(np.flatnonzero(wanted))
        with unpadded_forward(layout), only_wanted(index, ids.numel()):
            if self.separate_head:
                output = self.model.base_model(input_ids=ids, **inputs)[0]
            else:
                output = self.model(input_ids=ids, **inputs).logits
        states: Tensor = output.to(self.device)
        return states

    def _additive(self, mask: Tensor) -> Tensor:
        """[B, Q, T] bool → [B, 1, Q, T'] to add to scores, T' as the cache shows slots."""
        dtype = self.model.dtype
        visible = -(-mask.shape[2] // self.slot_multiple) * self.slot_multiple
        additive = torch.empty(
            *mask.shape[:2], visible, dtype=dtype, device=self.device
        )
        # Slots that do not exist yet are masked like those a token must not see.
        additive.fill_(torch.finfo(dtype).min)
        additive[..., : mask.shape[2]].masked_fill_(mask, 0)
        return additive[:, None]

    @property
    def shares_prompts(self) -> bool:
        """Whether rows share the keys and values of their prompt, and hold no copy."""
        return self.can_unpad and self.can_share_prompts

    def unpads(
        self, tokens: int, slots: int, cache: KVCache | None = None
    ) -> bool:
        """Whether a batch with so many real tokens in its slots runs without padding."""
        shares_prompts = cache is not None and bool(cache.prompts)
        dense = tokens > _DENSE_SHARE * slots
        return self.can_unpad and (shares_prompts or not dense)

    def forward_costs(
        self,
        tokens_by_row: Sequence[int],
        attention_mask: Tensor,  # [B, Q, T]
        cache: KVCache,
        causal: bool = False,
    ) -> list[Cost]:
        """The cost of each row of a forward.

        Logits are not in it where they are computed from hidden states afterwards.
        """
        rows = len(tokens_by_row)
        _, slots, width = attention_mask.shape
        unpadded = self.unpads(sum(tokens_by_row), rows * slots, cache)
        pairs = slots * width
        prompt_lengths = cache.prompt_lengths.tolist()
        if not prompt_lengths:
            prompt_lengths = [0] * rows
        elif causal:
            pairs = slots * (slots + 1) // 2
        return [
            self.row_cost(tokens, slots, pairs + tokens * prompt, unpadded)
            for tokens, prompt in zip(
                tokens_by_row, prompt_lengths, strict=True
            )
        ]

    def row_cost(
        self,
        tokens: int,
        slots: int,
        pairs: int,
        unpadded: bool,
    ) -> Cost:
        """The cost of one row with so many real tokens and attention pairs."""
        padding = 0 if unpadded else slots - tokens
        logits = 0 if self.separate_head else tokens + padding
        return Cost(tokens, padding, pairs, logits)

    def logits(
        self,
        hidden_states: Tensor,
        phase: Phase | None = None,
    ) -> Iterator[Tensor]:
        """Float32 logits [m, V] of hidden states [M, D], a bounded number m at a time.

        They are counted under `phase`, if any.
        """
        if phase and self.separate_head:
            self.usage.record(phase, Cost(logits=len(hidden_states)))
        head: Any = torch.nn.Identity()
        if self.separate_head:
            lm: Any = self.model
            head = lm.get_output_embeddings()
        # A vocabulary of 128,000 in float32 would take 512 KB for every row at once.
        rows = max(1, self.logits_alive // self.vocabulary_size)
        with torch.inference_mode():
            for chunk in torch.split(hidden_states, rows):
                yield head(chunk).to(self.device).float()

    def log_probability(
        self,
        hidden_states: Tensor,
        targets: Tensor,
        phase: Phase,
    ) -> Tensor:
        """Natural log of p(target) [M], float32, after each of hidden states [M, D]."""
        chunks = []
        start = 0
        for logits in self.logits(hidden_states, phase):
            end = start + len(logits)
            # log p = logit - log of the sum of exponentials; no softmax is stored.
            chunk_targets = targets[start:end, None]
            target_logits = logits.gather(1, chunk_targets)[:, 0]
            sums = [block.logsumexp(1) for block in row_blocks(logits)]
            chunks.append(target_logits - torch.cat(sums))
            start = end
        return torch.cat(chunks) if chunks else torch.zeros(0)

    def batch_by_length(
        self,
        lengths: Sequence[int],
        prefix: int = 0,
        forwards: int = 1,
        share: float = 1.0,
    ) -> list[list[int]]:
        """batching.batch_by_length under this share of `max_batch_tokens`."""
        max_tokens = int(self.max_batch_tokens * share)
        return batch_by_length(lengths, max_tokens, prefix, forwards)


def row_blocks(logits: Tensor) -> tuple[Tensor, ...]:
    """Logits [M, V] in blocks of rows whose sums and softmaxes are computed at once.

    On a CPU the intermediate results then stay in its cache, and in memory that the
    process already has.
    """
    rows = len(logits)
    if logits.device.type == "cpu":
        rows = max(1, _BLOCK_LOGITS // logits.shape[1])
    return torch.split(logits, max(1, rows))


def causal_mask(length: int, device: torch.device) -> Tensor:
    """[1, length, length] bool: every token sees itself and those before it."""
    return torch.ones(
        1, length, length, dtype=torch.bool, device=device
    ).tril_()


def unused_mask(dtype: torch.dtype, device: torch.device) -> Tensor:
    """A mask [1, 1, 1, 1] where none is needed.

    transformers passes masks of four dimensions on as they are; without one it would make
    its own.
    """
    return torch.zeros(1, 1, 1, 1, dtype=dtype, device=device)


def pad_rows(rows: Sequence[ndarray]) -> ndarray:
    """Rows of ids as one array [B, longest], with zeros behind them."""
    longest = max(map(len, rows))
    padded = np.zeros((len(rows), longest), dtype=np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded
