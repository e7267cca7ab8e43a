"""Tree attention: a row holds one text and all branches that grow from it (paper section 2).

In: tokens for `extend`, each following one token of the frontier (the tokens fed last); further
texts for `admit`. Out: hidden states of the new frontier, and what they cost each text. A token sees
its own branch only, so every branch gets what it would as a separate sequence. prefill.py makes
the contexts that branches grow from; the caller decides which branches grow.

Shapes: B rows, Q query slots (the frontier), T cache slots, M tokens in a flat list, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import pad

from pipeline.base.records import Phase
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.model import LanguageModel
from pipeline.engine.usage import BatchUsage, Usage

# A new cache gets this many free slots, and room for so many steps as wide as the frontier.
SPARE_SLOTS = 32
_SPARE_STEPS = 4
# The cache is compacted when that shrinks it to this share: a copy costs about a step.
_COMPACT_SHARE = 0.7


def index_within_group(groups: ndarray) -> ndarray:
    """Each element's number within its group, from 0; `groups` [M] ascend."""
    first_of_group = np.searchsorted(groups, groups)
    return np.arange(len(groups)) - first_of_group


class TreeBatch:
    """Texts, numbered in the order they came, and their branches.

    `extend` and `frontier` refer to tokens of the frontier by text and slot.
    """

    hidden_states: Tensor  # [B, Q, D] of the frontier
    attention_mask: Tensor  # [B, Q, T] bool: slots each token sees, its own too
    position_ids: Tensor  # [B, Q]

    def __init__(
        self,
        model: LanguageModel,
        cache: KVCache,
        usage_by_text: Sequence[Usage],
    ) -> None:
        """`cache` has a row for each text; costs are added to `usage_by_text`."""
        self.model = model
        self.device = model.device
        self.cache = cache
        self.usage = BatchUsage(usage_by_text)
        # Each text's row in the tensors; -1 once the text has been dropped.
        self.row_of_text = np.arange(len(usage_by_text))
        # Rows with a token in the frontier, ascending.
        self.active_rows = self.row_of_text

    @property
    def cached_slots(self) -> int:
        """Cache slots of all active rows together; rows that have ended are not counted."""
        return len(self.active_rows) * self.cache.length

    def log_probability(
        self,
        text: ndarray,
        slot: ndarray,
        tokens: ndarray,
        phase: Phase = "decode",
    ) -> ndarray:
        """ln p(token) [M], float64, after the frontier's tokens in `slot` of `text`."""
        self._record_logits(text, phase)
        hidden_states = self.frontier(text, slot)
        targets = self.model.tensor(tokens)
        logprobs = self.model.log_probability(hidden_states, targets, phase)
        values: ndarray = logprobs.double().cpu().numpy()
        return values

    def logits(self, text: ndarray, slot: ndarray) -> Iterator[Tensor]:
        """LanguageModel.logits after the frontier's tokens in `slot` of `text`."""
        self._record_logits(text, "decode")
        return self.model.logits(self.frontier(text, slot), "decode")

    def frontier(self, text: ndarray, slot: ndarray) -> Tensor:
        """Hidden states [M, D] of the frontier's tokens in `slot` of `text`."""
        row = self.model.tensor(self.row_of_text[text])
        hidden_states: Tensor = self.hidden_states[row, self.model.tensor(slot)]
        return hidden_states

    def extend(
        self,
        text: ndarray,  # [M]
        slot: ndarray,  # [M] slot of the new frontier; 0, 1, … in each text
        parent: ndarray,  # [M] slot of the frontier token that this one follows
        ids: ndarray,  # [M]
        phase: Phase = "decode",
        keep: bool = False,
    ) -> None:
        """Feed M tokens, each after a token of the frontier; they become the frontier.

        While decoding, rows without a token and slots that no token sees are dropped
        once that saves enough to be worth a copy of the cache. With `keep` the old frontier
        stays as it is, and the new tokens get the slots behind its own.
        """
        # A grid of rows and slots; empty places are padding.
        row = self.row_of_text[text]
        shape = (len(self.position_ids), int(slot.max()) + 1)
        ids_grid = np.zeros(shape, dtype=int)
        parent_grid = np.zeros(shape, dtype=int)
        is_token = np.zeros(shape, dtype=bool)
        ids_grid[row, slot] = ids
        parent_grid[row, slot] = parent
        is_token[row, slot] = True
        # A token sees what its parent saw; its position is one higher.
        tokens = self.model.tensor(ids_grid)
        parents = self.model.tensor(parent_grid)
        per_slot = parents[..., None].expand(-1, -1, self.cache.length)
        context_mask = self.attention_mask.gather(1, per_slot)
        position_ids = self.position_ids.gather(1, parents) + 1
        # Rows in which no branch goes on become inactive.
        if not keep:
            self.active_rows = np.unique(row)
        if phase == "decode" and not keep:
            rows = self.model.tensor(self.active_rows)
            # Slots of branches that have ended are seen by no token any more.
            active_mask = context_mask[rows]
            width = _widest(active_mask)
            size = len(context_mask) * self.cache.length
            if len(rows) * width <= _COMPACT_SHARE * size:
                tokens, position_ids = tokens[rows], position_ids[rows]
                is_token = is_token[self.active_rows]
                context_mask = self._compact(active_mask, width, shape[1])
        # A token also sees itself, in the slot that it gets.
        itself = torch.eye(shape[1], dtype=torch.bool, device=self.device)
        itself = itself.expand(len(position_ids), -1, -1)
        attention_mask = torch.cat([context_mask, itself], dim=2)
        before = (self.hidden_states, self.attention_mask, self.position_ids)
        self._run(tokens, position_ids, attention_mask, phase, is_token)
        if keep:
            self._prepend(*before)

    def _prepend(
        self,
        hidden_states: Tensor,  # [B, Q', D]
        attention_mask: Tensor,  # [B, Q', T']
        position_ids: Tensor,  # [B, Q']
    ) -> None:
        """Put an earlier frontier before the present one; it sees none of the newer slots."""
        newer = self.attention_mask.shape[2] - attention_mask.shape[2]
        masks = [pad(attention_mask, (0, newer)), self.attention_mask]
        self.attention_mask = torch.cat(masks, dim=1)
        states = [hidden_states, self.hidden_states]
        self.hidden_states = torch.cat(states, dim=1)
        self.position_ids = torch.cat([position_ids, self.position_ids], dim=1)

    def admit(self, other: TreeBatch) -> None:
        """Take in the texts of `other`, numbered after these; `other` must not be used again.

        The frontiers are joined and keep their slots. Rows without a token in them, and
        slots that no token sees, are dropped.
        """
        batches = (self, other)
        rows = [batch.model.tensor(batch.active_rows) for batch in batches]
        masks = [
            batch.attention_mask[r]
            for batch, r in zip(batches, rows, strict=True)
        ]
        slots = [_visible_slots(mask, _widest(mask)) for mask in masks]
        # Both batches are padded to the same numbers of cache and query slots.
        width = max(kept.shape[1] for kept in slots)
        queries = max(batch.position_ids.shape[1] for batch in batches)
        parts = [
            (batch.cache, batch.active_rows, kept)
            for batch, kept in zip(batches, slots, strict=True)
        ]
        self.cache = KVCache.gathered(parts, width + _spare(queries))
        padded = [
            batch._padded(row, mask, kept, queries, width)
            for batch, row, mask, kept in zip(
                batches, rows, masks, slots, strict=True
            )
        ]
        # Texts of `other` stand in the rows after these; -1 stays -1.
        own_rows = len(self.active_rows)
        own, others = (batch._rows_after_compaction() for batch in batches)
        others = np.where(others >= 0, others + own_rows, -1)
        self.row_of_text = np.concatenate([own, others])
        self.active_rows = np.arange(own_rows + len(other.active_rows))
        # The frontiers below one another, in the order of the cache's rows.
        attention_masks, position_ids, hidden_states = zip(*padded, strict=True)
        self.attention_mask = torch.cat(attention_masks)
        self.position_ids = torch.cat(position_ids)
        self.hidden_states = torch.cat(hidden_states)
        self.usage.extend(other.usage)

    def _padded(
        self,
        rows: Tensor,  # [B']
        mask: Tensor,  # [B', Q, T]
        slots: Tensor,  # [B', T']
        queries: int,
        width: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The frontier of these rows, padded to `queries` query and `width` cache slots."""
        more_queries = queries - self.position_ids.shape[1]
        more_slots = width - slots.shape[1]
        attention_mask = pad(
            _at_slots(mask, slots), (0, more_slots, 0, more_queries)
        )
        position_ids = pad(self.position_ids[rows], (0, more_queries))
        hidden_states = pad(self.hidden_states[rows], (0, 0, 0, more_queries))
        return attention_mask, position_ids, hidden_states

    def _compact(
        self,
        mask: Tensor,
        width: int,
        queries: int,
    ) -> Tensor:
        """Keep the active rows and their visible slots; the mask [B', Q, T'] over these.

        `mask` [B', Q, T] is that of the active rows, of which none sees more than `width` slots.
        """
        # Slots keep their order; a token's position does not depend on its slot.
        slots = _visible_slots(mask, width)
        part = (self.cache, self.active_rows, slots)
        self.cache = KVCache.gathered([part], width + _spare(queries))
        self.row_of_text = self._rows_after_compaction()
        self.active_rows = np.arange(len(self.active_rows))
        return _at_slots(mask, slots)

    def _rows_after_compaction(self) -> ndarray:
        """`row_of_text` when only active rows are left."""
        # One entry more than rows: texts dropped before have row -1, the last entry.
        new_row = np.full(len(self.position_ids) + 1, -1)
        new_row[self.active_rows] = np.arange(len(self.active_rows))
        row_of_text: ndarray = new_row[self.row_of_text]
        return row_of_text

    def _run(
        self,
        ids: Tensor,  # [B, Q]
        position_ids: Tensor,  # [B, Q]
        attention_mask: Tensor,  # [B, Q, T]
        phase: Phase,
        is_token: ndarray,  # [B, Q]
        causal: bool = False,
        wanted: ndarray | None = None,  # [B, Q]
    ) -> None:
        """Run a forward; its tokens become the frontier, with hidden states of wanted ones."""
        tokens_by_row = is_token.sum(axis=1).tolist()
        self.hidden_states = self.model.forward(
            ids,
            position_ids,
            attention_mask,
            self.cache,
            phase,
            tokens_by_row,
            is_token,
            causal,
            wanted,
        )
        self.attention_mask = attention_mask
        self.position_ids = position_ids
        # Each text is charged for its row, padding included where padding was fed.
        costs = self.model.forward_costs(
            tokens_by_row, attention_mask, self.cache, causal
        )
        self.usage.record_rows(phase, costs, self.row_of_text)

    def _record_logits(self, text: ndarray, phase: Phase) -> None:
        if self.model.separate_head:
            self.usage.record_logits(phase, text)


def _spare(queries: int) -> int:
    return SPARE_SLOTS + _SPARE_STEPS * queries


def _widest(mask: Tensor) -> int:
    """Most slots that the tokens of a row of [B, Q, T] see together."""
    # A slot counts once, however many tokens of the row see it.
    seen_by_row = mask.any(dim=1).sum(dim=1)
    return int(seen_by_row.max())


def _visible_slots(mask: Tensor, width: int) -> Tensor:
    """The slots [B, width] that tokens of each row of [B, Q, T] see, in their order.

    Rows that see fewer are padded with slots that no token sees.
    """
    visible = mask.any(dim=1).byte()
    # A stable sort moves visible slots to the front and keeps their order.
    by_visibility = visible.argsort(dim=1, descending=True, stable=True)
    return by_visibility[:, :width]


def _at_slots(mask: Tensor, slots: Tensor) -> Tensor:
    """The columns `slots` [B, T'] of a mask [B, Q, T], as [B, Q, T']."""
    queries = mask.shape[1]
    index = slots[:, None].expand(-1, queries, -1)
    return mask.gather(2, index)
