"""Sampling with continuous batching: draws of many texts at once (paper section 2).

In: prefilled contexts with the positions chosen in each, a key for each of the m draws at a
position, and the automaton that says when a draw is over. Out: the tokens of every draw.

A draw's next token inverts the cumulative distribution at a random number of its own, so
the same draws come whatever is drawn beside them. Draws at one position with the same
tokens so far are one node of the tree and cost one token. Requests join while others run.
Which requests run together, and reading tokens as calls, is for the caller.

Shapes: N running draws, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from pipeline.engine.errors import NonFiniteError
from pipeline.engine.model import LanguageModel
from pipeline.engine.prefill import PrefilledBatch
from pipeline.engine.random_streams import uniforms
from pipeline.engine.tree_attention import TreeBatch, index_within_group

Origin = tuple[int, str, int]
"""Where a draw comes from, for errors: text id, tool, token position."""


def invert_cdf(logits: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Tokens [N, m]: for logits [N, V] and u [N, m] in [0, 1), the first token whose
    cumulative probability (float64) exceeds u.

    Minus one where a row of logits is not finite.
    """
    cdf = logits.double().softmax(dim=-1).cumsum(dim=-1)
    total = cdf[:, -1:]
    tokens = torch.searchsorted(cdf, u * total, right=True)
    tokens.clamp_(max=logits.shape[-1] - 1)
    return tokens.masked_fill_(~total.isfinite(), -1)


@dataclass(frozen=True)
class _RunningDraws:
    """The draws that have not ended, [N] each."""

    number: np.ndarray  # among all draws
    node: np.ndarray  # of the frontier, where each draw stands
    key: np.ndarray  # of its random stream
    automaton: np.ndarray  # its place among the sampler's automata
    state: np.ndarray  # of that automaton
    max_tokens: np.ndarray

    def select(self, which: np.ndarray) -> _RunningDraws:
        """The draws at a mask or at indices."""
        columns = {f.name: getattr(self, f.name)[which] for f in fields(self)}
        return _RunningDraws(**columns)

    def concatenate(self, other: _RunningDraws) -> _RunningDraws:
        """These draws, then those of `other`."""
        columns = {}
        for f in fields(self):
            pair = [getattr(self, f.name), getattr(other, f.name)]
            columns[f.name] = np.concatenate(pair)
        return _RunningDraws(**columns)


class Sampler:
    """Draws of any texts, one token each at a step.

    A draw ends when its automaton closes or dies, or when it is too long. `tokens` are
    those of every draw so far, numbered in the order the draws came.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.tokens: list[list[int]] = []
        self._model = model
        self._origins: list[Origin] = []  # of every draw
        self._automata: list[np.ndarray] = []
        self._tree: TreeBatch | None = None
        self._running: _RunningDraws | None = None
        # Text and slot of each node of the frontier.
        self._node_text = np.zeros(0, dtype=np.int64)
        self._node_slot = self._node_text

    @property
    def cached_slots(self) -> int:
        """Cache slots that running texts hold, in all."""
        return self._tree.cached_slots if self._tree else 0

    def running(self) -> set[int]:
        """Numbers of the draws that have not ended."""
        return set(self._running.number.tolist()) if self._running else set()

    def add(
        self,
        contexts: PrefilledBatch,
        text: np.ndarray,  # [R] the text of each position, ascending
        position: np.ndarray,  # [R] token index
        keys: np.ndarray,  # [R, m]
        automaton: np.ndarray,  # next state [states, V], as syntax/grammar.py makes it
        max_tokens: int,
        origins: Sequence[Origin],  # [R]
    ) -> range:
        """Start m draws at each position; their numbers, position by position."""
        contexts.branch(text, position)
        count, m = keys.size, keys.shape[1]
        numbers = range(len(self.tokens), len(self.tokens) + count)
        self.tokens += [[] for _ in numbers]
        self._origins += [origin for origin in origins for _ in range(m)]
        node_slot = index_within_group(text)
        draws = _RunningDraws(
            number=np.array(numbers),
            node=np.repeat(np.arange(len(text)), m),
            key=keys.ravel(),
            automaton=np.full(count, self._automaton_index(automaton)),
            state=np.zeros(count, dtype=np.int16),
            max_tokens=np.full(count, max_tokens),
        )
        if self._tree is None or self._running is None:
            self._tree, self._running = contexts, draws
            self._node_text, self._node_slot = text, node_slot
            return numbers
        first_text = len(self._tree.row_of_text)
        first_node = len(self._node_text)
        self._tree.admit(contexts)
        draws = replace(draws, node=draws.node + first_node)
        self._running = self._running.concatenate(draws)
        self._node_text = np.concatenate([self._node_text, text + first_text])
        self._node_slot = np.concatenate([self._node_slot, node_slot])
        return numbers

    def step(self) -> None:
        """Draw one token for each running draw, and run those that go on.

        Raises NonFiniteError where the model's logits are not finite.
        """
        if self._tree is None or self._running is None:
            return
        running = self._running
        numbers = running.number.tolist()
        length = np.array([len(self.tokens[number]) for number in numbers])
        drawn = self._draw(self._tree, running.node, uniforms(running.key, length))
        failed = running.number[drawn < 0]
        if len(failed):
            origin = self._origins[failed[0]]
            raise NonFiniteError("the probability of a call's token", *origin)
        for number, token in zip(numbers, drawn.tolist(), strict=True):
            self.tokens[number].append(token)
        state = self._next_states(running, drawn)
        alive = (state >= 0) & (length + 1 < running.max_tokens)
        if not alive.any():
            self._tree = self._running = None
            return
        # Draws of one node that drew the same token are one node again.
        branch = running.node[alive] * self._model.vocabulary_size + drawn[alive]
        branches, node = np.unique(branch, return_inverse=True)
        parent_node, token = np.divmod(branches, self._model.vocabulary_size)
        parent_slot = self._node_slot[parent_node]
        self._node_text = self._node_text[parent_node]
        self._node_slot = index_within_group(self._node_text)
        self._running = replace(running.select(alive), node=node, state=state[alive])
        self._tree.extend(self._node_text, self._node_slot, parent_slot, token)

    def _automaton_index(self, automaton: np.ndarray) -> int:
        for index, known in enumerate(self._automata):
            if known is automaton:
                return index
        self._automata.append(automaton)
        return len(self._automata) - 1

    def _next_states(self, running: _RunningDraws, drawn: np.ndarray) -> np.ndarray:
        """The automata's states after one more token."""
        state = np.empty_like(running.state)
        for index, automaton in enumerate(self._automata):
            own = running.automaton == index
            state[own] = automaton[running.state[own], drawn[own]]
        return state

    def _draw(self, tree: TreeBatch, node: np.ndarray, u: np.ndarray) -> np.ndarray:
        """The next token [N] of draws at `node` [N] with random numbers u [N].

        Minus one where the model's logits are not finite.
        """
        # A grid of random numbers: nodes x the most draws that one of them has.
        order = np.argsort(node, kind="stable")
        column = np.empty_like(node)
        column[order] = index_within_group(node[order])
        grid = np.zeros((len(self._node_text), int(column.max()) + 1))
        grid[node, column] = u
        u_grid = tree.model.tensor(grid)
        chunks = []
        start = 0
        for logits in tree.logits(self._node_text, self._node_slot):
            end = start + len(logits)
            chunks.append(invert_cdf(logits, u_grid[start:end]))
            start = end
        tokens: np.ndarray = torch.cat(chunks).cpu().numpy()[node, column]
        return tokens
