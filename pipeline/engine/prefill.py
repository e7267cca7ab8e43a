"""Prefill: the contexts that calls are sampled in, for all positions at once (paper section 2).

A row's context is the prompt (computed once, copied per row), the text, the prompt's suffix
and the text again. Position i is predicted by the token before it: by the last token of the
suffix for i = 0, else by token i - 1 of the second copy of the text. Without a prompt the row
is BOS, if there is one, and the text; without either, position 0 is predicted by nothing.

In: a prompt and texts as ids. Out: p(<API>) at every position, and a tree with ``<API>``
behind the chosen positions. The caller chooses the positions.

Shapes: B rows, N tokens of the longest text, S of the suffix, M positions in a flat list.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy import ndarray

from pipeline.engine.model import (
    LanguageModel,
    PromptCache,
    causal_mask,
    pad_rows,
)
from pipeline.engine.tree_attention import (
    SPARE_SLOTS,
    TreeBatch,
    index_within_group,
)
from pipeline.engine.usage import Usage


class PrefilledBatch(TreeBatch):
    """B texts behind one prompt. Until `branch`, the frontier is the whole context."""

    def __init__(
        self,
        model: LanguageModel,
        prompt: PromptCache,
        texts: Sequence[ndarray],
        usage_by_text: Sequence[Usage],
    ) -> None:
        """Run the contexts. Every text has at least one token, or two if nothing stands
        before it."""
        rows = len(texts)
        # Prompt (cached) | text | suffix | text without its last token: that would predict
        # what comes after the text.
        text_ids = pad_rows(texts)  # [B, N]
        suffix_ids = np.tile(prompt.suffix, (rows, 1))  # [B, S]
        copy_ids = text_ids[:, :-1]  # [B, N - 1]
        self.lengths = np.array([len(text) for text in texts])
        self.longest = text_ids.shape[1]  # N
        # Tokens of each text in its prompt, [B]: the text stands there, if there is one.
        in_prompt = self.lengths * prompt.has_prompt
        text_ids = text_ids[
            :, : in_prompt.max()
        ]  # [B, N]; [B, 0] without a prompt
        ids = np.concatenate([text_ids, suffix_ids, copy_ids], axis=1)
        self.context_length = prompt.length + ids.shape[1]
        # The query slot that predicts position 0: the last token of the suffix. It is -1
        # where there is none, and the first position is then 1.
        self.first_slot = text_ids.shape[1] + len(prompt.suffix) - 1
        self.first_position = max(0, -self.first_slot)
        cache = prompt.cache.repeated(rows, self.context_length + SPARE_SLOTS)
        super().__init__(model, cache, usage_by_text)
        is_token, position_ids = self._layout(in_prompt, len(prompt.suffix))
        # Padding gets position id 0: it must not ask for positions that the model lacks.
        position_ids = np.where(is_token, prompt.length + position_ids, 0)
        # A token sees the prompt, and the real tokens before it in its own row.
        causal = causal_mask(ids.shape[1], self.device)
        context_mask = model.tensor(is_token)[:, None] & causal
        prompt_mask = context_mask.new_ones(1, 1, prompt.length)
        prompt_mask = prompt_mask.expand(*context_mask.shape[:2], -1)
        self._run(
            model.tensor(ids),
            model.tensor(position_ids),
            torch.cat([prompt_mask, context_mask], dim=2),
            "positions",
            is_token,
        )

    def _layout(
        self,
        in_prompt: ndarray,  # [B] tokens of the text in the prompt
        suffix_length: int,
    ) -> tuple[ndarray, ndarray]:
        """Which slots [B, N + S + N - 1] hold tokens, and their positions after the prompt."""
        length, before = self.lengths[:, None], in_prompt[:, None]
        text = np.arange(in_prompt.max())
        suffix = np.arange(suffix_length)
        copy = np.arange(self.longest - 1)
        suffix_is_token = np.ones((len(length), suffix_length), dtype=bool)
        is_token = np.concatenate(
            [text < before, suffix_is_token, copy < length - 1], axis=1
        )
        # Position ids skip padding: suffix and copy go on from the text's own length.
        text_positions = np.broadcast_to(text, (len(length), len(text)))
        position_ids = np.concatenate(
            [text_positions, before + suffix, before + suffix_length + copy],
            axis=1,
        )
        return is_token, position_ids

    def api_probabilities(self) -> list[ndarray]:
        """p(<API>) at every position: an array [tokens of the text], float64, for each text.

        The probability is the product along the ids of ``<API>``. The first id needs no
        forward of its own; for each other id a temporary branch grows at every position.
        It is 0 at a position that nothing predicts.
        """
        counts = self.lengths - self.first_position
        text = np.repeat(np.arange(len(counts)), counts)
        branch = np.concatenate([np.arange(count) for count in counts])
        position = self.first_position + branch
        # Truncating the cache's length afterwards drops the temporary branches.
        context = (self.hidden_states, self.attention_mask, self.position_ids)
        length = self.cache.length
        slot = self.first_slot + position
        log_p_api = np.zeros(len(text))
        previous = None
        for token in self.model.call_tokens.api:
            if previous is not None:
                previous_ids = np.full(len(text), previous)
                self.extend(text, branch, slot, previous_ids, "positions")
                slot = branch
            ids = np.full(len(text), token)
            log_p_api += self.log_probability(text, slot, ids, "positions")
            previous = token
        self.hidden_states, self.attention_mask, self.position_ids = context
        self.cache.length = length
        unpredicted = np.zeros(self.first_position)
        return [
            np.concatenate([unpredicted, p_api])
            for p_api in np.split(np.exp(log_p_api), np.cumsum(counts)[:-1])
        ]

    def branch(self, text: ndarray, position: ndarray) -> None:
        """Put ``<API>`` behind the contexts of positions [M] of texts [M]; at least one.

        Texts ascend, and positions within a text. Afterwards the frontier is the last token
        of ``<API>`` of each branch: slot j of a text is its j-th position. Context behind
        the last position is dropped: no branch sees it.
        """
        copy_length = self.longest - 1
        until_position_0 = self.context_length - copy_length
        self.cache.length = until_position_0 + int(position.max())
        self.attention_mask = self.attention_mask[:, :, : self.cache.length]
        # Several ids of <API> follow one another on the same branch.
        slot = index_within_group(text)
        parent = self.first_slot + position
        for token in self.model.call_tokens.api:
            self.extend(text, slot, parent, np.full(len(text), token))
            parent = slot
