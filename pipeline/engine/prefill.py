"""The contexts calls are sampled in: P(x), x_1 .. x_{i-1} for every position i at once (paper section 2).

In: a prompt and texts as ids. Out: p(<API>) at every position, and a tree with ``<API>`` behind the positions
that were chosen. A row's context is the prompt (one copy per row, computed once), the text, the prompt's
suffix, the text again; the tokens that predict position i are the last of the suffix and the text's first to
last but one. Which positions to choose is sampling.py's.

Shapes: B rows, N tokens of the longest text, O of the suffix, M positions in a flat list.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.engine.model import LanguageModel, Prompt, causal, pad
from pipeline.engine.tree_attention import SPARE, Tree, Usage, rank


class PrefilledBatch(Tree):
    """B texts behind one prompt. Until `branch`, the frontier is the context."""

    def __init__(
        self, model: LanguageModel, prompt: Prompt, texts: Sequence[np.ndarray], accounts: Sequence[Usage]
    ) -> None:
        """Runs the contexts. A text has at least one token."""
        self.lengths = np.array([len(text) for text in texts])
        self.width, rows, tail = int(self.lengths.max()), len(texts), len(prompt.suffix)
        self.first = self.width + tail - 1  # the context's column that predicts position 0
        ids = np.concatenate([pad(texts), np.tile(prompt.suffix, (rows, 1)), pad(texts)[:, :-1]], axis=1)
        self.context = prompt.length + ids.shape[1]
        super().__init__(model, prompt.cache.repeated(rows, self.context + SPARE), accounts)
        once, again = np.arange(self.width), np.arange(self.width - 1)
        n = self.lengths[:, None]
        real = np.concatenate([once < n, np.ones((rows, tail), dtype=bool), again < n - 1], axis=1)
        depth = np.concatenate([once + 0 * n, n + np.arange(tail), n + tail + again], axis=1)
        depth = np.where(real, depth + prompt.length, 0)  # padding must not ask for positions the model lacks
        seen = model.tensor(real)[:, None] & causal(ids.shape[1], self.device)
        before = torch.ones(1, 1, prompt.length, dtype=torch.bool, device=self.device)
        allowed = torch.cat([before.expand(*seen.shape[:2], -1), seen], dim=2)
        self._run(model.tensor(ids), model.tensor(depth), allowed, "positions", real)

    def positions(self) -> list[np.ndarray]:
        """p(<API>) [n] at every position of each text, float64: the product along the ids of ``<API>``.

        Only the first of them needs no forward of its own; for the others a branch grows at every position
        and is forgotten again.
        """
        row = np.repeat(np.arange(len(self.lengths)), self.lengths)
        column = np.concatenate([np.arange(n) for n in self.lengths])
        saved = (self.features, self.allowed, self.depth, self.cache.length)
        at = self.first + column
        total = np.zeros(len(row))
        for depth, token in enumerate(self.model.call_tokens.api):
            if depth:
                previous = np.full(len(row), self.model.call_tokens.api[depth - 1])
                self.extend(row, column, at, previous, "positions")
                at = column
            total += self.log_probability(row, at, np.full(len(row), token), "positions")
        self.features, self.allowed, self.depth, self.cache.length = saved
        return np.split(np.exp(total), np.cumsum(self.lengths)[:-1])

    def branch(self, row: np.ndarray, position: np.ndarray) -> None:
        """Puts ``<API>`` behind the contexts of positions [M] of texts [M], both ascending; the slots of its
        last token are in that order.

        Columns behind the last position are forgotten: no branch sees them.
        """
        self.cache.length = self.context - (self.width - 1) + int(position.max())
        self.allowed = self.allowed[:, :, : self.cache.length]
        slot, parent = rank(row), self.first + position
        for token in self.model.call_tokens.api:
            self.extend(row, slot, parent, np.full(len(row), token))
            parent = slot
