"""Drawing calls from M, many texts' draws at once (paper section 2, "Sampling API Calls").

In: contexts of texts with the positions I chosen in each, and a key for each of the m draws at a position.
Out: the tokens of every draw. A draw's random numbers are its own, fixed by seed, text, tool, position and
number, and its next token inverts the cumulative distribution: the same draws come whatever is drawn beside
them. Draws that stand at one position with the same tokens so far are one node of the tree and cost one
token. Which texts are under way together, and reading the tokens as calls, is sampling.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from pipeline.engine.errors import NonFiniteError
from pipeline.engine.model import LanguageModel
from pipeline.engine.prefill import PrefilledBatch
from pipeline.engine.tree_attention import Tree, rank
from tools_service.tools.contract import TOOL_NAMES, ToolName

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def stream_keys(seed: int, text_id: int, tool: ToolName, position: int, m: int) -> np.ndarray:
    """Keys [m] uint64 of the random streams of the m draws at token `position` of a text."""
    key = np.zeros(m, dtype=np.uint64)
    for part in (seed, text_id, TOOL_NAMES.index(tool), position):
        key = _mix((key ^ np.uint64(part % 2**64)) + _GAMMA)
    return _mix((key ^ np.arange(m, dtype=np.uint64)) + _GAMMA)


def uniforms(keys: np.ndarray, step: np.ndarray | int) -> np.ndarray:
    """The random numbers u in [0, 1) that streams `keys` hold for their token `step`, counted from 0
    (SplitMix64)."""
    bits = _mix(keys + (np.atleast_1d(step) + 1).astype(np.uint64) * _GAMMA)
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


@dataclass(frozen=True)
class _Running:
    """The draws that have not ended, [N] each."""

    number: np.ndarray  # among all draws
    node: np.ndarray  # of the frontier, where each stands
    key: np.ndarray
    tool: np.ndarray  # its place in TOOL_NAMES
    state: np.ndarray  # of the tool's automaton
    most: np.ndarray  # tokens it may have

    def only(self, which: np.ndarray) -> _Running:
        return replace(self, **{name.name: getattr(self, name.name)[which] for name in fields(self)})

    def and_also(self, other: _Running) -> _Running:
        pairs = {name.name: [getattr(one, name.name) for one in (self, other)] for name in fields(self)}
        return _Running(**{name: np.concatenate(pair) for name, pair in pairs.items()})


class Sampler:
    """Draws of any texts and tools, one token each at a step. Others join while they run, and those that end
    leave their place. A draw ends when it closes, cannot become a call, or is too long.

    `tokens` are those after ``<API>`` of every draw so far, numbered in the order they came.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.tokens: list[list[int]] = []
        self._model = model
        self._asked: list[tuple[int, ToolName, int]] = []  # text id, tool and position of every draw
        self._tree: Tree | None = None
        self._running: _Running | None = None
        self._row = self._slot = np.zeros(0, dtype=np.int64)  # of each node of the frontier

    @property
    def held(self) -> int:
        """Columns of the cache that the texts under way hold, in all."""
        return self._tree.held if self._tree else 0

    def running(self) -> set[int]:
        """Numbers of the draws that have not ended."""
        return set(self._running.number.tolist()) if self._running else set()

    def add(
        self,
        contexts: PrefilledBatch,
        tool: ToolName,
        row: np.ndarray,  # [R] which text each position is in, ascending
        position: np.ndarray,  # [R] token i
        keys: np.ndarray,  # [R, m]
        max_tokens: int,
        text_ids: Sequence[int],  # [R], for errors
    ) -> range:
        """Starts m draws at each of the positions; their numbers, position by position."""
        contexts.branch(row, position)
        count, m = keys.size, keys.shape[1]
        numbers = range(len(self.tokens), len(self.tokens) + count)
        self.tokens += [[] for _ in numbers]
        for text_id, place in zip(text_ids, position.tolist(), strict=True):
            self._asked += [(text_id, tool, place)] * m
        new = _Running(
            number=np.array(numbers),
            node=np.repeat(np.arange(len(row)), m),
            key=keys.ravel(),
            tool=np.full(count, TOOL_NAMES.index(tool)),
            state=np.zeros(count, dtype=np.int16),
            most=np.full(count, max_tokens),
        )
        if self._tree is None or self._running is None:
            self._tree, self._running, self._row, self._slot = contexts, new, row, rank(row)
            return numbers
        first = len(self._tree.place)
        self._tree.join(contexts)
        self._running = self._running.and_also(replace(new, node=new.node + len(self._row)))
        self._row = np.concatenate([self._row, row + first])
        self._slot = np.concatenate([self._slot, rank(row)])
        return numbers

    def step(self) -> None:
        """Draws a token for each, and runs those after which another is to be drawn.

        Raises NonFiniteError where the model's logits are not finite.
        """
        if self._tree is None or self._running is None:
            return
        now, vocabulary = self._running, self._model.vocabulary
        length = np.array([len(self.tokens[number]) for number in now.number.tolist()])
        drawn = _draw(self._tree, self._row, self._slot, now.node, uniforms(now.key, length))
        if (drawn < 0).any():
            raise NonFiniteError("the probability of a call's token", *self._asked[now.number[drawn < 0][0]])
        for number, token in zip(now.number.tolist(), drawn.tolist(), strict=True):
            self.tokens[number].append(token)
        state = self._next(now, drawn)
        going = (state >= 0) & (length + 1 < now.most)
        if not going.any():
            self._tree = self._running = None
            return
        nodes, node = np.unique(now.node[going] * vocabulary + drawn[going], return_inverse=True)
        above = nodes // vocabulary
        row, parent = self._row[above], self._slot[above]
        self._running = replace(now.only(going), node=node, state=state[going])
        self._row, self._slot = row, rank(row)
        self._tree.extend(row, self._slot, parent, nodes % vocabulary)

    def _next(self, now: _Running, drawn: np.ndarray) -> np.ndarray:
        """The automata's states after one more token."""
        state = np.empty_like(now.state)
        for place in np.unique(now.tool):
            mine = now.tool == place
            table = self._model.automaton(TOOL_NAMES[place])
            state[mine] = table[now.state[mine], drawn[mine]]
        return state


def _draw(tree: Tree, row: np.ndarray, slot: np.ndarray, node: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The next token [draws] of each draw, given its node and u [draws]; -1 where the model's logits are
    not finite."""
    order = np.argsort(node, kind="stable")
    turn = np.empty_like(node)  # each draw's number among those of its node
    turn[order] = rank(node[order])
    grid = np.zeros((len(row), int(turn.max()) + 1))
    grid[node, turn] = u
    chances, parts, done = tree.model.tensor(grid), [], 0
    for logits in tree.logits(row, slot):
        parts.append(invert_cdf(logits, chances[done : done + len(logits)]))
        done += len(logits)
    drawn: np.ndarray = torch.cat(parts).cpu().numpy()[node, turn]
    return drawn
