"""Log-probabilities of tokens on branches of a text: what stands after its first n tokens.

In: token sequences (trunks), and branches that each follow some first tokens of one. Out: the
log-probabilities of the wanted tokens of each branch. A trunk runs once for all of its
branches, in one row with them: a token sees the trunk up to where its branch begins, and its
own branch. That equals a forward of its own for each branch, for any model that honours a
mask and positions given by hand (checks.py).

Shapes: B rows, Q query slots of the longest, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from torch import Tensor

from pipeline.base.records import Phase
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.logprobs import run_batches
from pipeline.engine.model import LanguageModel, pad_rows

# Branches share a row until it has so many times the tokens of its trunk: attention costs
# grow with the square of a row.
_ROW_GROWTH = 4


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """Token ids that follow the first `after` tokens of a trunk (at least one).

    `wanted` are indices into `ids`.
    """

    after: int
    ids: ndarray
    wanted: ndarray


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """A trunk and some of its branches, by their index in the list of all branches."""

    trunk: ndarray
    branches: list[Branch]
    indices: list[tuple[int, int]]

    @property
    def tokens(self) -> int:
        """Tokens to feed; the last token of a branch is only predicted."""
        return len(self.trunk) + sum(len(b.ids) - 1 for b in self.branches)


def branch_logprobs(
    model: LanguageModel,
    trunks: Sequence[ndarray],
    branches: Sequence[Sequence[Branch]],
    phase: Phase,
) -> list[list[ndarray]]:
    """For each branch of each trunk the log-probabilities (nats) of its wanted tokens.

    They are computed in float32 and returned as float64. Raises ModelError if a single row
    does not fit the memory.
    """
    rows = [
        row
        for number, (trunk, of_trunk) in enumerate(
            zip(trunks, branches, strict=True)
        )
        for row in _rows(number, trunk, of_trunk)
    ]
    results: list[list[ndarray]] = [
        [np.zeros(0)] * len(of_trunk) for of_trunk in branches
    ]
    batches = run_batches(
        model,
        [row.tokens for row in rows],
        lambda indices: _run(model, [rows[index] for index in indices], phase),
    )
    for indices, logprobs in batches:
        batch = [rows[index] for index in indices]
        sizes = [len(b.wanted) for row in batch for b in row.branches]
        parts = np.split(logprobs.cpu().numpy(), np.cumsum(sizes)[:-1])
        places = [place for row in batch for place in row.indices]
        for (trunk_number, branch_number), part in zip(
            places, parts, strict=True
        ):
            results[trunk_number][branch_number] = part
    return results


def _rows(
    number: int, trunk: ndarray, branches: Sequence[Branch]
) -> list[_Row]:
    """The branches of one trunk in rows, each with the trunk as far as it is needed."""
    order = sorted(range(len(branches)), key=lambda i: branches[i].after)
    rows: list[_Row] = []
    tokens = 0
    for index in order:
        branch = branches[index]
        limit = _ROW_GROWTH * branch.after
        if not rows or tokens + len(branch.ids) > limit:
            rows.append(_Row(trunk, [], []))
            tokens = 0
        rows[-1].branches.append(branch)
        rows[-1].indices.append((number, index))
        tokens += len(branch.ids)
    # Branches ascend: the last of a row needs the most of the trunk.
    return [
        _Row(trunk[: row.branches[-1].after], row.branches, row.indices)
        for row in rows
    ]


def _run(model: LanguageModel, rows: Sequence[_Row], phase: Phase) -> Tensor:
    """The wanted log-probabilities of one batch, those of one branch after another."""
    ids = [
        np.concatenate([row.trunk, *(b.ids[:-1] for b in row.branches)])
        for row in rows
    ]
    longest = max(map(len, ids))
    position_ids = np.zeros((len(rows), longest), dtype=np.int64)
    mask = np.zeros((len(rows), longest, longest), dtype=bool)
    # A padding slot sees itself: a row of a mask without any key has no softmax.
    mask[:, np.arange(longest), np.arange(longest)] = True
    row_of, slot_of, targets = [], [], []
    for number, row in enumerate(rows):
        size = len(row.trunk)
        position_ids[number, :size] = np.arange(size)
        mask[number, :size, :size] = np.tri(size, dtype=bool)
        start = size
        for branch in row.branches:
            length = len(branch.ids) - 1
            end = start + length
            position_ids[number, start:end] = branch.after + np.arange(length)
            mask[number, start:end, : branch.after] = True
            mask[number, start:end, start:end] = np.tri(length, dtype=bool)
            # A token is predicted by the one before it: the first by the trunk.
            slots = np.concatenate(
                [[branch.after - 1], start + np.arange(length)]
            )
            slot_of.append(slots[branch.wanted].astype(np.int64))
            row_of.append(np.full(len(branch.wanted), number))
            targets.append(branch.ids[branch.wanted])
            start = end
    is_token = np.arange(longest) < np.array([len(row) for row in ids])[:, None]
    wanted = np.zeros_like(is_token)
    row_index, slot_index = np.concatenate(row_of), np.concatenate(slot_of)
    wanted[row_index, slot_index] = True
    hidden_states = model.forward(
        model.tensor(pad_rows(ids)),
        model.tensor(position_ids),
        model.tensor(mask),
        KVCache(),
        phase,
        [len(row) for row in ids],
        is_token,
        wanted=wanted,
    )
    predicting = hidden_states[
        model.tensor(row_index), model.tensor(slot_index)
    ]
    target_ids = model.tensor(np.concatenate(targets))
    return model.log_probability(predicting, target_ids, phase).double()
