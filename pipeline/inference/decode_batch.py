"""Several prompts decoded in step over one cache, each at positions of its own (for step 7, decoding.py).

Every step feeds one token to every row. Rows are left-padded, and a row may take back its latest tokens:
their columns in the cache are masked from then on and their positions used again, so that what follows is
computed as if they had never been there. In: the engine and token ids. Out: the logits after each row's last
token. What to feed is not decided here, and nothing here knows of calls or stopping.

Shapes: B rows, Q tokens fed now, T columns of the cache (padding and tokens taken back included), V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.base.records import Phase
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.model import LanguageModel


class DecodeBatch:
    """B token sequences over one cache. `logits` [B, V], float32, are those after each row's last token."""

    logits: Tensor

    def __init__(self, model: LanguageModel, prompts: Sequence[Sequence[int]]) -> None:
        """Runs the prompts; each needs at least one token."""
        if not prompts or not all(prompts):
            raise ValueError("every row needs a prompt of at least one token")
        self._model = model
        self._cache = KVCache()
        self._lengths = [len(prompt) for prompt in prompts]
        widest = max(self._lengths)
        ids = torch.tensor([[0] * (widest - len(prompt)) + list(prompt) for prompt in prompts])
        columns = torch.arange(widest)
        self._filled = columns >= widest - torch.tensor(self._lengths)[:, None]  # [B, T]
        allowed = self._filled[:, None, :] & (columns[:, None] >= columns)
        self._run(ids, (self._filled.cumsum(-1) - 1).clamp(min=0), allowed, "prompt", self._lengths)

    def __len__(self) -> int:
        return len(self._lengths)

    def length(self, row: int) -> int:
        """Tokens of `row`, without padding and without those taken back."""
        return self._lengths[row]

    def step(self, tokens: Sequence[int]) -> None:
        """Appends one token to every row."""
        depth = torch.tensor(self._lengths)[:, None]
        self._filled = torch.nn.functional.pad(self._filled, (0, 1), value=True)
        self._lengths = [length + 1 for length in self._lengths]
        self._run(torch.tensor(tokens)[:, None], depth, self._filled[:, None, :], "decode", [1] * len(tokens))

    def rollback(self, row: int, count: int) -> None:
        """Forgets the last `count` tokens of `row`, all of them fed by steps in a row. `logits` stay."""
        last = self._filled[row, self._filled.shape[1] - count :]
        if not 0 <= count < self._lengths[row] or not bool(last.all()):
            raise ValueError(f"row {row} cannot take back {count} of its {self._lengths[row]} tokens")
        last[:] = False
        self._lengths[row] -= count

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with `rows` only, in this order; columns that none of them needs are dropped."""
        self._lengths = [self._lengths[row] for row in rows]
        index, widest = torch.tensor(rows), max(self._lengths)
        # A stable sort moves what is not filled to the front of each row and keeps the tokens' order.
        columns = self._filled[index].long().argsort(dim=1, stable=True)[:, -widest:]
        self._filled = self._filled[index].gather(1, columns)
        device = self._model.device
        kept = (self._cache, index.to(device), columns.to(device))
        self._cache = KVCache.gathered([kept], widest + widest // 4)
        self.logits = self.logits[index.to(device)]

    def _run(self, ids: Tensor, depth: Tensor, allowed: Tensor, phase: Phase, real: Sequence[int]) -> None:
        """Appends `ids` [B, Q] at positions `depth` [B, Q]; `allowed` [B, Q, T] are the columns each sees."""
        device = self._model.device
        features = self._model.forward(
            ids.to(device), depth.to(device), allowed.to(device), self._cache, phase, real
        )
        # A copy that may be written to; what the engine returns is an inference tensor.
        self.logits = torch.cat(list(self._model.logits(features[:, -1]))).clone()
