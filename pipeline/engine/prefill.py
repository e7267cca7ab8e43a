"""Prefill: the contexts that calls are sampled in, for all positions at once (paper section 2).

A row's context is the prompt (computed once, and shared by all rows where the model allows
it), the text, the prompt's suffix and the text again. Position i is predicted by the token
before it: by the last token of the suffix for i = 0, else by token i - 1 of the second copy
of the text. Without a prompt the row is BOS, if there is one, and the text; without either,
position 0 is predicted by nothing.

In: a prompt and texts as ids. Out: p(<API>) at every position, and a tree with ``<API>``
behind the chosen positions. The caller chooses the positions.

Shapes: B rows, M positions in a flat list.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy import ndarray
from torch.nn.functional import pad

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
        # Behind the prompt: text | suffix | text without its last token, which would
        # predict what comes after the text. Without a prompt the text stands there once.
        contexts = [
            np.concatenate(
                [
                    text if prompt.has_prompt else text[:0],
                    prompt.suffix,
                    text[:-1],
                ]
            )
            for text in texts
        ]
        self.lengths = np.array([len(text) for text in texts])
        context_lengths = np.array([len(context) for context in contexts])
        # The query slot [B] that predicts position 0: the last token of the suffix. It is
        # -1 where there is none, and the first position is then 1.
        self.first_slot = context_lengths - self.lengths
        self.first_position = max(0, -int(self.first_slot[0]))
        ids = pad_rows(contexts)
        slot = np.arange(ids.shape[1])
        is_token = slot < context_lengths[:, None]
        # Padding gets position id 0: it must not ask for positions that the model lacks.
        position_ids = np.where(is_token, prompt.length + slot, 0)
        # A token sees those before it in its own row, of which none is padding.
        mask = causal_mask(ids.shape[1], model.device)
        capacity = ids.shape[1] + SPARE_SLOTS
        if model.shares_prompts and prompt.length:
            cache = prompt.cache.shared(rows, capacity)
        else:
            cache = prompt.cache.repeated(rows, prompt.length + capacity)
            # And the prompt.
            mask = pad(mask, (prompt.length, 0), value=True)
        # Slots of the cache before those of the contexts.
        self._first_cache_slot = cache.length
        super().__init__(model, cache, usage_by_text)
        self._run(
            model.tensor(ids),
            model.tensor(position_ids),
            mask.expand(rows, -1, -1),
            "positions",
            is_token,
            causal=True,
            # The text's first copy and all of the suffix but its end predict no position.
            wanted=is_token & (slot >= self.first_slot[:, None]),
        )

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
        slot = self.first_slot[text] + position
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
        parent = self.first_slot[text] + position
        self.cache.length = self._first_cache_slot + int(parent.max()) + 1
        self.attention_mask = self.attention_mask[:, :, : self.cache.length]
        # Several ids of <API> follow one another on the same branch.
        slot = index_within_group(text)
        for token in self.model.call_tokens.api:
            self.extend(text, slot, parent, np.full(len(text), token))
            parent = slot
