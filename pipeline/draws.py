"""Drawing calls from M, all draws of a batch at once (paper section 2, "Sampling API Calls").

In: a tree of texts with the positions I chosen in each, and a key for each of the m draws at a position.
Out: the tokens of every draw. A draw's random numbers are its own, fixed by seed, text, tool, position and
number, and its next token inverts the cumulative distribution: the same draws come whatever is drawn beside
them. Draws that stand at one position with the same tokens so far are one node of the tree and cost one
token. Reading the tokens as calls is sampling.py's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.model import NonFiniteError
from pipeline.records import TOOL_NAMES, ToolName
from pipeline.tree import Tree

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def stream_keys(seed: int, text_id: int, tool: ToolName, position: int, m: int) -> np.ndarray:
    """Keys [m] uint64 of the random streams of the m draws at token `position` of a text."""
    key = np.zeros(m, dtype=np.uint64)
    for part in (seed, text_id, TOOL_NAMES.index(tool), position):
        key = _mix((key ^ np.uint64(part % 2**64)) + _GAMMA)
    return _mix((key ^ np.arange(m, dtype=np.uint64)) + _GAMMA)


def uniforms(keys: np.ndarray, step: int) -> np.ndarray:
    """The random numbers u in [0, 1) that streams `keys` hold for their token `step`, counted from 0
    (SplitMix64)."""
    bits = _mix(keys + np.array([step + 1], dtype=np.uint64) * _GAMMA)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed


def invert_cdf(logits: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Tokens [N, m]: for logits [N, V] and u [N, m] the first token whose cumulative float64 probability
    exceeds u.

    Minus one where a row of logits is not finite.
    """
    cdf = logits.double().softmax(dim=-1).cumsum(dim=-1)
    drawn = torch.searchsorted(cdf, u * cdf[:, -1:], right=True)
    return drawn.clamp_(max=logits.shape[-1] - 1).masked_fill_(~cdf[:, -1:].isfinite(), -1)


def grow(
    tree: Tree,
    tool: ToolName,
    row: np.ndarray,  # [R] which text each position is in, ascending
    position: np.ndarray,  # [R] token i
    keys: np.ndarray,  # [R, m]
    max_tokens: int,
    text_ids: Sequence[int],  # [R], for errors
) -> list[tuple[int, ...]]:
    """The tokens after ``<API>`` of all R·m draws, each until it closes, cannot become a call, or is too
    long."""
    table, vocabulary = tree.model.automaton(tool), tree.model.vocabulary
    tree.crop(int(position.max()))
    root, slot, parent = np.arange(len(row)), _rank(row), tree.first + position
    for token in tree.model.markers.api:
        tree.extend(row, slot, parent, np.full(len(row), token))
        parent = slot
    node = np.repeat(root, keys.shape[1])  # of each running draw: where in row, slot and root
    running = np.arange(keys.size)
    state = np.zeros(keys.size, dtype=np.int16)
    tokens = np.zeros((keys.size, max_tokens), dtype=np.int64)
    length = np.full(keys.size, max_tokens)
    for step in range(max_tokens):
        drawn = _draw(tree, row, slot, node, uniforms(keys.ravel()[running], step))
        if (drawn < 0).any():
            at = root[node[drawn < 0][0]]
            raise NonFiniteError("the probability of a call's token", text_ids[at], tool, int(position[at]))
        tokens[running, step] = drawn
        state = table[state, drawn]
        going = state >= 0
        length[running[~going]] = step + 1
        running, state = running[going], state[going]
        if not len(running) or step + 1 == max_tokens:
            break
        nodes, node = np.unique(node[going] * vocabulary + drawn[going], return_inverse=True)
        above = nodes // vocabulary
        root, row, parent = root[above], row[above], slot[above]
        slot = _rank(row)
        tree.extend(row, slot, parent, nodes % vocabulary)
    return [tuple(sequence[:size].tolist()) for sequence, size in zip(tokens, length, strict=True)]


def _draw(tree: Tree, row: np.ndarray, slot: np.ndarray, node: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The next token [draws] of each draw, given its node and u [draws]; -1 where the model's logits are
    not finite."""
    order = np.argsort(node, kind="stable")
    turn = np.empty_like(node)  # each draw's number among those of its node
    turn[order] = _rank(node[order])
    grid = np.zeros((len(row), int(turn.max()) + 1))
    grid[node, turn] = u
    chances, parts, done = torch.from_numpy(grid).to(tree.device), [], 0
    for logits in tree.logits(row, slot):
        parts.append(invert_cdf(logits, chances[done : done + len(logits)]))
        done += len(logits)
    drawn: np.ndarray = torch.cat(parts).cpu().numpy()[node, turn]
    return drawn


def _rank(groups: np.ndarray) -> np.ndarray:
    """Each element's number within its group, from 0; `groups` ascend."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups)
