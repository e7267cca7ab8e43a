"""A batch of token sequences over one KV cache, which rows join and leave (step 7).

In: the engine and token ids. Out: the logits after each row's last token. A row that leaves keeps
its keys and values, so that joining again runs only the tokens that are new. A row can roll back
its latest tokens: later logits are the same as without them. decoder.py chooses the tokens.

Shapes: B rows, J joining rows, Q tokens of the longest of them, T cache slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.base.records import Phase
from pipeline.engine.model import LanguageModel, pad_rows
from pipeline.engine.row_cache import RowCache, SavedRow


class DecodeBatch:
    """B token sequences. `logits` [B, V], float32, follow the last token of each row."""

    logits: Tensor

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._cache = RowCache()
        self.logits = torch.empty(0)

    def __len__(self) -> int:
        return len(self._cache.lengths)

    def length(self, row: int) -> int:
        """Tokens of `row`, without those that were rolled back."""
        return self._cache.lengths[row]

    def join(self, saved: Sequence[SavedRow], tokens: Sequence[Sequence[int]]) -> None:
        """Add J rows behind the others: what each was when it left, and at least one new token.

        A forward that runs out of memory leaves the batch as it was.
        """
        if not all(tokens):
            raise ValueError("every row needs at least one token to run")
        first = len(self)
        try:
            for row in saved:
                self._cache.add(row)
            joined = self._forward(first, tokens, "prompt")
        except torch.OutOfMemoryError:
            del self._cache.lengths[first:]
            raise
        self.logits = torch.cat([self.logits, joined]) if first else joined

    def step(self, tokens: Sequence[int]) -> None:
        """Append one token to every row."""
        self.logits = self._forward(0, [[token] for token in tokens], "decode")

    def truncate(self, row: int, length: int) -> None:
        """Keep the first `length` tokens of `row`; `logits` do not change.

        Raises ValueError if it has fewer, or none would remain.
        """
        if not 0 < length <= self.length(row):
            raise ValueError(f"row {row} cannot be cut to {length} of its {self.length(row)} tokens")
        self._cache.lengths[row] = length

    def save(self, row: int) -> SavedRow:
        """The row as it is, to join again later."""
        return self._cache.save(row)

    def remove(self, row: int) -> None:
        """Drop a row. The last row takes its place."""
        self._cache.remove(row)
        last = len(self)
        if row != last:
            self.logits[row] = self.logits[last]
        self.logits = self.logits[:last]

    def _forward(self, first: int, tokens: Sequence[Sequence[int]], phase: Phase) -> Tensor:
        """Append tokens to the rows from `first` on; the logits [J, V] after the last of each."""
        model = self._model
        counts = [len(row) for row in tokens]
        longest = max(counts)
        starts = np.array(self._cache.lengths[first:])
        query = np.arange(longest)
        slots = starts[:, None] + query  # [J, Q]: where each token stands, which is its position
        is_token = query < np.array(counts)[:, None]
        width = int(starts.max()) + longest
        # Padding stands behind a row's tokens, so no token sees it.
        attention_mask = np.arange(width) <= slots[:, :, None]  # [J, Q, T]
        last = np.array(counts) - 1
        self._cache.run(first, model.tensor(slots), width)
        hidden_states = model.forward(
            model.tensor(pad_rows([np.asarray(row) for row in tokens])),
            model.tensor(np.where(is_token, slots, 0)),  # padding has a position that the model has
            model.tensor(attention_mask),
            self._cache,
            phase,
            counts,
            is_token,
            wanted=query == last[:, None],
        )
        for row, count in enumerate(counts, start=first):
            self._cache.lengths[row] += count
        last_states = hidden_states[model.tensor(np.arange(len(counts))), model.tensor(last)]
        # A copy, because the engine returns inference tensors and the decoder writes to the logits.
        return torch.cat(list(model.logits(last_states))).clone()
