"""Branches over texts: a row is a text, and a token sees the columns of its branch only (paper section 2).

In: tokens that `extend` puts behind any of the tokens fed last, in any of the rows; further rows by `join`.
Out: the features of those tokens, and what they cost each text. A branch sees what it grew from and its own
tokens, and nothing of the branches beside it, so each is what a sequence of its own would be. Contexts, from
which all branches grow, are made in contexts.py; which branches to grow is not decided here.

Shapes: B rows, Q columns of the frontier (the tokens fed last), T columns of the cache, M branches in a flat
list, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn.functional import pad

from pipeline.base.records import Cost, Phase
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.model import LanguageModel

SPARE = 32  # columns a cache is made with beyond those it begins with
_STEPS = 4  # and for so many steps of as many tokens as the frontier has
_WORTH = 0.7  # copy the cache when it shrinks to this share

Usage = dict[Phase, Cost]
"""What was spent on one text."""


def rank(groups: np.ndarray) -> np.ndarray:
    """Each element's number within its group, from 0; `groups` ascend."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups)


class Tree:
    """Texts, numbered in the order they came, and their branches. `extend` and `flat` refer to the tokens of
    the frontier."""

    features: torch.Tensor  # [B, Q, D] of the frontier
    allowed: torch.Tensor  # [B, Q, T] which columns each token of the frontier sees, itself included
    depth: torch.Tensor  # [B, Q] position ids of the frontier

    def __init__(self, model: LanguageModel, cache: KVCache, accounts: Sequence[Usage]) -> None:
        """A row of `cache` for each text; what they cost is added to their `accounts`."""
        self.model, self.device, self.cache = model, model.device, cache
        self.accounts = list(accounts)
        self.place = np.arange(len(accounts))  # each text's row in the tensors; -1 once it has been given up
        self.alive = self.place  # rows with a token in the frontier

    @property
    def held(self) -> int:
        """Columns of the cache that rows with a token in the frontier hold, in all."""
        return len(self.alive) * self.cache.length

    def log_probability(
        self, row: np.ndarray, at: np.ndarray, tokens: np.ndarray, phase: Phase = "decode"
    ) -> np.ndarray:
        """ln p(token) [M], float64, after the frontier's token in column `at` of each text `row`."""
        self._spend_logits(row, phase)
        found = self.model.log_probability(self.flat(row, at), self.model.tensor(tokens), phase)
        numbers: np.ndarray = found.double().cpu().numpy()
        return numbers

    def logits(self, row: np.ndarray, at: np.ndarray) -> Iterator[torch.Tensor]:
        """LanguageModel.logits after the frontier's token in column `at` of each text `row`, to draw from."""
        self._spend_logits(row, "decode")
        return self.model.logits(self.flat(row, at), "decode")

    def flat(self, row: np.ndarray, at: np.ndarray) -> torch.Tensor:
        """Features [M, D] of the frontier's tokens."""
        features: torch.Tensor = self.features[self.model.tensor(self.place[row]), self.model.tensor(at)]
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
        tokens, behind = self.model.tensor(fed), self.model.tensor(parents)
        allowed = self.allowed.gather(1, behind[..., None].expand(-1, -1, self.cache.length))
        depth = self.depth.gather(1, behind) + 1
        self.alive = np.unique(here)
        if phase == "decode":
            tokens, depth, allowed, real = self._compact(tokens, depth, allowed, real)
        own = torch.eye(shape[1], dtype=torch.bool, device=self.device).expand(len(depth), -1, -1)
        self._run(tokens, depth, torch.cat([allowed, own], dim=2), phase, real)

    def join(self, other: Tree) -> None:
        """Takes in the texts of another tree, numbered on from these; `other` is of no use afterwards.

        Both frontiers together are the frontier, with their columns as they were. Rows that have no token in
        it and columns that no token sees are left behind.
        """
        trees = (self, other)
        rows = [tree.model.tensor(tree.alive) for tree in trees]
        own = [tree.allowed[kept] for tree, kept in zip(trees, rows, strict=True)]
        columns = [_seen(part, _width(part)) for part in own]
        width = max(part.shape[1] for part in columns)
        queries = max(tree.depth.shape[1] for tree in trees)
        allowed, depth, features = [], [], []
        for tree, kept, part, seen in zip(trees, rows, own, columns, strict=True):
            more = queries - tree.depth.shape[1]
            allowed.append(pad(_columns(part, seen), (0, width - seen.shape[1], 0, more)))
            depth.append(pad(tree.depth[kept], (0, more)))
            features.append(pad(tree.features[kept], (0, 0, 0, more)))
        caches = [tree.cache for tree in trees]
        self.cache = KVCache.joined(list(zip(caches, rows, columns, strict=True)), width + _spare(queries))
        self.allowed, self.depth, self.features = map(torch.cat, (allowed, depth, features))
        places = [tree._renumbered() for tree in trees]
        first = len(self.alive)
        self.place = np.concatenate([places[0], np.where(places[1] >= 0, places[1] + first, -1)])
        self.alive = np.arange(first + len(other.alive))
        self.accounts += other.accounts

    def _compact(
        self, tokens: torch.Tensor, depth: torch.Tensor, allowed: torch.Tensor, real: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray]:
        """Takes rows that are not alive, and columns no token sees, out of the cache and the next step."""
        rows = self.model.tensor(self.alive)
        width = _width(allowed[rows])
        if len(self.alive) * width > _WORTH * len(depth) * self.cache.length:
            return tokens, depth, allowed, real
        columns = _seen(allowed[rows], width)
        self.cache = KVCache.joined([(self.cache, rows, columns)], width + _spare(tokens.shape[1]))
        real = real[self.alive]
        self.place = self._renumbered()
        self.alive = np.arange(len(rows))
        return tokens[rows], depth[rows], _columns(allowed[rows], columns), real

    def _renumbered(self) -> np.ndarray:
        """`place` when only the rows that are alive are left."""
        places = np.full(len(self.depth) + 1, -1)  # the last for texts given up before
        places[self.alive] = np.arange(len(self.alive))
        renumbered: np.ndarray = places[self.place]
        return renumbered

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
        self.features = self.model.forward(ids, depth, allowed, self.cache, phase, total, real)
        self._spend(phase, [costs[row] if row >= 0 else None for row in self.place])
        self.allowed = allowed
        self.depth = depth

    def _spend_logits(self, row: np.ndarray, phase: Phase) -> None:
        if self.model.separate_head:
            counts = np.bincount(row, minlength=len(self.place)).tolist()
            self._spend(phase, [Cost(logits=count) if count else None for count in counts])

    def _spend(self, phase: Phase, costs: Sequence[Cost | None]) -> None:
        for account, cost in zip(self.accounts, costs, strict=True):
            if cost is not None:
                account[phase] = account.get(phase, Cost()) + cost


def _spare(queries: int) -> int:
    return SPARE + _STEPS * queries


def _width(allowed: torch.Tensor) -> int:
    """Most columns that the tokens of a row of [B, Q, T] see."""
    return int(allowed.any(dim=1).sum(dim=1).max())


def _seen(allowed: torch.Tensor, width: int) -> torch.Tensor:
    """Of each row of [B, Q, T] the columns that a token sees, in their order, and others until there are
    `width` in all: [B, width]."""
    return allowed.any(dim=1).byte().argsort(dim=1, descending=True, stable=True)[:, :width]


def _columns(allowed: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """[B, Q, T] at columns [B, T']."""
    return allowed.gather(2, columns[:, None].expand(-1, allowed.shape[1], -1))
