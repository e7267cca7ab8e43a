"""Draws given the tool's name: the forwards (docs/method.md, "Draws given the tool's name").

In: contexts with ``<API>`` behind each chosen position, and the keys of the m draws there. Out:
of each draw the tokens that write the name, and the slots of the frontier that hold them.
name_paths.py decides which beginnings of the name run, and draws; here they run, for all
positions at once. The sampler goes on behind the names.

Shapes: R positions, M beginnings in a flat list, U tokens that can stand in the name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray

from pipeline.engine.errors import NonFiniteError, Origin
from pipeline.engine.model import row_blocks
from pipeline.engine.name_paths import NamedDraw, NamePaths, Prefix
from pipeline.engine.random_streams import uniforms
from pipeline.engine.tree_attention import TreeBatch, index_within_group
from pipeline.syntax.grammar import Opening


@dataclass(frozen=True, slots=True)
class GivenName:
    """The name at one position: its probability after <API>, and the beginnings of it that ran
    behind <API>, as tokens."""

    probability: float
    beginnings: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class DrawnName:
    """What was drawn at one position. Draws refer to `prefixes` by number."""

    given: GivenName
    draws: list[
        NamedDraw | None
    ]  # [m]; None if the name is too unlikely to be drawn
    prefixes: list[Prefix]
    slots: list[int]  # of the frontier, for each of the prefixes


def draw_names(
    tree: TreeBatch,
    text: ndarray,  # [R] ascending
    keys: ndarray,  # [R, m]
    opening: Opening,
    max_tokens: int,
    origins: Sequence[Origin],  # [R]
) -> list[DrawnName]:
    """Draw the tokens of the name at each position; the frontier is <API> of each.

    Afterwards the frontier also holds the beginnings that were run. Raises NonFiniteError
    where the model's probabilities are not finite.
    """
    positions = np.arange(len(text))
    slot = index_within_group(text)
    first = _probabilities(tree, text, slot, opening, origins)
    steps = np.arange(max_tokens)
    paths = [
        NamePaths(opening, max_tokens, uniforms(own[:, None], steps), row)
        for own, row in zip(keys, first, strict=True)
    ]
    slots = [[int(of_api)] for of_api in slot]
    while True:
        wanted = [one.to_run() for one in paths]
        place = np.repeat(positions, [len(own) for own in wanted])
        if not len(place):
            break
        parents = [slots[r][n] for r, own in enumerate(wanted) for n, _ in own]
        columns = [column for own in wanted for _, column in own]
        # New slots stand behind those of the frontier so far.
        new_slot = index_within_group(text[place])
        width = tree.position_ids.shape[1]
        tree.extend(
            text[place],
            new_slot,
            np.array(parents),
            opening.tokens[columns],
            keep=True,
        )
        new_slot = new_slot + width
        rows = _probabilities(
            tree,
            text[place],
            new_slot,
            opening,
            [origins[r] for r in place.tolist()],
        )
        for r in np.unique(place).tolist():
            paths[r].add(wanted[r], rows[place == r])
            slots[r] += new_slot[place == r].tolist()
    return [_drawn(*pair) for pair in zip(paths, slots, strict=True)]


def _drawn(paths: NamePaths, slots: list[int]) -> DrawnName:
    beginnings = tuple(prefix.tokens for prefix in paths.prefixes[1:])
    given = GivenName(paths.probability, beginnings)
    return DrawnName(given, paths.draws, paths.prefixes, slots)


def _probabilities(
    tree: TreeBatch,
    text: ndarray,  # [M]
    slot: ndarray,  # [M]
    opening: Opening,
    origins: Sequence[Origin],  # [M]
) -> ndarray:
    """p(token) [M, U], float64, after the frontier's tokens in `slot` of `text`."""
    tokens = tree.model.tensor(opening.tokens)
    # Logits come in chunks, to bound the memory they take.
    chunks = [
        block.double().softmax(dim=-1)[:, tokens]
        for logits in tree.logits(text, slot)
        for block in row_blocks(logits)
    ]
    probabilities: ndarray = torch.cat(chunks).cpu().numpy()
    bad = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if len(bad):
        origin = origins[bad[0]]
        raise NonFiniteError("the probability of a call's token", *origin)
    return probabilities
