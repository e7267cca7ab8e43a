"""All draws of a text as branches of one row: P(x), x_1..x_{i-1}, <API>, … for every i (paper section 2).

In: a prompt and texts as ids. Out: p(<API>) at every position, and features of tokens that `extend` puts
behind any of the tokens before them. A row's context is the prompt (one copy per row, computed once), the
text, the prompt's suffix, the text again; the tokens that predict position i are the last of the suffix and
the text's first to last but one. A branch sees the context up to its position and its own tokens, and
nothing of the other branches, so each is what a sequence of its own would be. Which branches to grow, and
when to stop, is sampling.py's.

Shapes: B rows, N tokens of the longest text, O of the suffix, Q columns of the frontier (the tokens fed
last, or the context at first), T columns of the cache, M branches or positions in a flat list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from pipeline.model import LanguageModel, Prompt, causal, pad
from pipeline.records import Cost, Phase

_SPARE = 32  # columns a cache is made with beyond its context
_WORTH = 0.7  # copy the cache when it shrinks to this share


class Tree:
    """B texts behind one prompt. `extend` and `flat` refer to the tokens of the frontier."""

    features: torch.Tensor  # [B, Q, D] of the frontier
    allowed: torch.Tensor  # [B, Q, T] which columns each token of the frontier sees, itself included
    depth: torch.Tensor  # [B, Q] position ids of the frontier

    def __init__(self, model: LanguageModel, prompt: Prompt, texts: Sequence[np.ndarray]) -> None:
        """Runs the contexts. A text has at least one token."""
        self.model, self.device = model, model.device
        self.lengths = np.array([len(text) for text in texts])
        self.place = np.arange(len(texts))  # each text's row in the tensors; -1 once it has been given up
        self.width, rows, tail = int(self.lengths.max()), len(texts), len(prompt.suffix)
        self.first = self.width + tail - 1  # the context's column that predicts position 0
        ids = np.concatenate([pad(texts), np.tile(prompt.suffix, (rows, 1)), pad(texts)[:, :-1]], axis=1)
        once, again = np.arange(self.width), np.arange(self.width - 1)
        n = self.lengths[:, None]
        real = np.concatenate([once < n, np.ones((rows, tail), dtype=bool), again < n - 1], axis=1)
        depth = np.concatenate([once + 0 * n, n + np.arange(tail), n + tail + again], axis=1)
        depth = np.where(real, depth + prompt.length, 0)  # padding must not ask for positions the model lacks
        seen = self._tensor(real)[:, None] & causal(ids.shape[1], self.device)
        before = torch.ones(1, 1, prompt.length, dtype=torch.bool, device=self.device)
        allowed = torch.cat([before.expand(*seen.shape[:2], -1), seen], dim=2)
        self.spent: dict[Phase, list[Cost]] = {}  # on each text
        self.context = prompt.length + ids.shape[1]
        self.cache = prompt.cache.repeated(rows, self.context + _SPARE)
        self._run(self._tensor(ids), self._tensor(depth), allowed, "positions", real)

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
        for depth, token in enumerate(self.model.markers.api):
            if depth:
                previous = np.full(len(row), self.model.markers.api[depth - 1])
                self.extend(row, column, at, previous, "positions")
                at = column
            total += self.log_probability(row, at, np.full(len(row), token), "positions")
        self.features, self.allowed, self.depth, self.cache.length = saved
        return np.split(np.exp(total), np.cumsum(self.lengths)[:-1])

    def log_probability(
        self, row: np.ndarray, at: np.ndarray, tokens: np.ndarray, phase: Phase = "decode"
    ) -> np.ndarray:
        """ln p(token) [M], float64, after the frontier's token in column `at` of each row."""
        self._spend_logits(row, phase)
        found = self.model.log_probability(self.flat(row, at), self._tensor(tokens), phase)
        numbers: np.ndarray = found.double().cpu().numpy()
        return numbers

    def logits(self, row: np.ndarray, at: np.ndarray) -> Iterator[torch.Tensor]:
        """LanguageModel.logits after the frontier's token in column `at` of each row, to draw from."""
        self._spend_logits(row, "decode")
        return self.model.logits(self.flat(row, at), "decode")

    def flat(self, row: np.ndarray, at: np.ndarray) -> torch.Tensor:
        """Features [M, D] of the frontier's tokens."""
        features: torch.Tensor = self.features[self._tensor(self.place[row]), self._tensor(at)]
        return features

    def extend(
        self,
        row: np.ndarray,  # [M] which text
        slot: np.ndarray,  # [M] column of the new frontier; in each row they count from 0
        parent: np.ndarray,  # [M] column of the frontier's token that this one follows
        ids: np.ndarray,  # [M]
        phase: Phase = "decode",
    ) -> None:
        """Feeds M tokens, each behind a token of the frontier; they are the new frontier.

        While decoding, rows without a token and columns that no token sees are given up once that is worth
        a copy.
        """
        here = self.place[row]
        shape = (len(self.depth), int(slot.max()) + 1)
        fed, parents = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        fed[here, slot], parents[here, slot] = ids, parent
        real = np.zeros(shape, dtype=bool)
        real[here, slot] = True
        tokens, behind = self._tensor(fed), self._tensor(parents)
        allowed = self.allowed.gather(1, behind[..., None].expand(-1, -1, self.cache.length))
        depth = self.depth.gather(1, behind) + 1
        if phase == "decode":
            tokens, depth, allowed, real = self._compact(np.unique(here), tokens, depth, allowed, real)
        own = torch.eye(shape[1], dtype=torch.bool, device=self.device).expand(len(depth), -1, -1)
        self._run(tokens, depth, torch.cat([allowed, own], dim=2), phase, real)

    def crop(self, last: int) -> None:
        """Forgets the context's columns behind the one that predicts position `last`; no branch sees them."""
        self.cache.length = self.context - (self.width - 1) + last
        self.allowed = self.allowed[:, :, : self.cache.length]

    def _compact(
        self,
        alive: np.ndarray,
        tokens: torch.Tensor,
        depth: torch.Tensor,
        allowed: torch.Tensor,
        real: np.ndarray,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray]:
        """Takes rows that are not alive, and columns no token sees, out of the cache and the next step."""
        rows = self._tensor(alive)
        seen = allowed[rows].any(dim=1)  # [B', T]
        width = int(seen.sum(dim=1).max())
        if len(alive) * width > _WORTH * len(depth) * self.cache.length:
            return tokens, depth, allowed, real
        columns = seen.byte().argsort(dim=1, descending=True, stable=True)[:, :width]
        self.cache.select(rows, columns, width + _SPARE)
        places = np.full(len(depth), -1)
        places[alive] = np.arange(len(alive))
        self.place = np.where(self.place >= 0, places[self.place], -1)
        allowed = allowed[rows].gather(2, columns[:, None].expand(-1, allowed.shape[1], -1))
        return tokens[rows], depth[rows], allowed, real[alive]

    def _run(
        self, ids: torch.Tensor, depth: torch.Tensor, allowed: torch.Tensor, phase: Phase, real: np.ndarray
    ) -> None:
        total = int(real.sum())
        packed = self.model.leaves_padding_out(total, real.size)
        columns = real.shape[1]
        costs = [
            self.model.cost(size, columns, columns * allowed.shape[2], packed)
            for size in real.sum(axis=1).tolist()
        ]
        self._spend(phase, [costs[row] if row >= 0 else Cost() for row in self.place])
        self.features = self.model.forward(ids, depth, allowed, self.cache, phase, total, real)
        self.allowed = allowed
        self.depth = depth

    def _spend_logits(self, row: np.ndarray, phase: Phase) -> None:
        if self.model.separate_head:
            counts = np.bincount(row, minlength=len(self.place)).tolist()
            self._spend(phase, [Cost(logits=count) for count in counts])

    def _spend(self, phase: Phase, costs: Sequence[Cost]) -> None:
        before = self.spent.get(phase, [Cost()] * len(costs))
        self.spent[phase] = [one + more for one, more in zip(before, costs, strict=True)]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
