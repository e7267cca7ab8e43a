"""Sampling with continuous batching: draws of many texts at once (paper section 2).

In: prefilled contexts with the positions chosen in each, a key for each of the m draws at a
position, and the automaton that says when a draw is over. Out: the tokens of every draw.
Draws may be given the tool's name: name_paths.py chooses their first tokens then.

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
from numpy import ndarray
from torch import Tensor

from pipeline.engine.errors import NonFiniteError, Origin
from pipeline.engine.given_name import DrawnName, GivenName, draw_names
from pipeline.engine.model import LanguageModel, row_blocks
from pipeline.engine.prefill import PrefilledBatch
from pipeline.engine.random_streams import uniforms
from pipeline.engine.tree_attention import TreeBatch, index_within_group
from pipeline.syntax.grammar import Opening


def invert_cdf(logits: Tensor, u: Tensor) -> Tensor:
    """Tokens [N, m]: for logits [N, V] and u [N, m] in [0, 1), the first token whose
    cumulative probability (float64) exceeds u.

    Minus one where a row of logits is not finite.
    """
    blocks = row_blocks(logits)
    sizes = [len(block) for block in blocks]
    tokens = [
        _invert_cdf(*pair)
        for pair in zip(blocks, torch.split(u, sizes), strict=True)
    ]
    return torch.cat(tokens)


def _invert_cdf(logits: Tensor, u: Tensor) -> Tensor:
    probabilities = logits.double().softmax(dim=-1)
    cdf = probabilities.cumsum(dim=-1)
    # Rounding may leave the last value a little off 1: u is scaled to it.
    total = cdf[:, -1:]
    tokens = torch.searchsorted(cdf, u * total, right=True)
    tokens.clamp_(max=logits.shape[-1] - 1)
    return tokens.masked_fill_(~total.isfinite(), -1)


def token_ranks(logits: Tensor, tokens: Tensor) -> Tensor:
    """The rank [B], from 0, of one of `tokens` [B] in each row of logits [B, V].

    Of equally likely tokens the one with the lower id comes first, as in max().
    """
    own = logits.gather(1, tokens[:, None])  # [B, 1]
    ids = torch.arange(logits.shape[1], device=logits.device)
    before = (logits > own) | ((logits == own) & (ids < tokens[:, None]))
    return before.sum(1)


@dataclass(frozen=True)
class _RunningDraws:
    """The draws that have not ended, [N] each."""

    number: ndarray  # among all draws
    node: ndarray  # of the frontier, where each draw stands
    key: ndarray  # of its random stream
    automaton: ndarray  # its place among the sampler's automata
    state: ndarray  # of that automaton
    max_tokens: ndarray

    def select(self, which: ndarray) -> _RunningDraws:
        """The draws at a mask or at indices."""
        columns = {}
        for f in fields(self):
            column = getattr(self, f.name)
            columns[f.name] = column[which]
        return _RunningDraws(**columns)

    def concatenate(self, other: _RunningDraws) -> _RunningDraws:
        """These draws, then those of `other`."""
        columns = {}
        for f in fields(self):
            own, others = getattr(self, f.name), getattr(other, f.name)
            columns[f.name] = np.concatenate([own, others])
        return _RunningDraws(**columns)


class Sampler:
    """Draws of any texts, one token each at a step.

    A draw ends when its automaton closes or dies, or when it is too long. Given the tool's
    name, a draw has no tokens if the name is too unlikely to be drawn (name_paths.py).
    """

    def __init__(self, model: LanguageModel) -> None:
        # The name that each draw was given, if any; callers read it by number.
        self.names: list[GivenName | None] = []
        # The tokens [draws, longest] of every draw so far, in the order in which draws were
        # added, and how many [draws] each has.
        self._tokens = np.zeros((0, 0), dtype=np.int64)
        self._lengths = np.zeros(0, dtype=np.int64)
        self._model = model
        self._origins: list[Origin] = []  # of every draw too
        self._automata: list[ndarray] = []
        self._tree: TreeBatch | None = None
        self._running: _RunningDraws | None = None
        # Text and slot of each node of the frontier, nodes of one text together.
        self._node_text = np.zeros(0, dtype=int)
        self._node_slot = self._node_text

    @property
    def cached_slots(self) -> int:
        """Cache slots of all running texts together."""
        if self._tree is None:
            return 0
        return self._tree.cached_slots

    def tokens(self, numbers: range) -> list[tuple[int, ...]]:
        """The tokens of these draws so far."""
        rows = self._tokens[numbers.start : numbers.stop].tolist()
        lengths = self._lengths[numbers.start : numbers.stop].tolist()
        return [
            tuple(row[:length])
            for row, length in zip(rows, lengths, strict=True)
        ]

    def running(self) -> set[int]:
        """Numbers of the draws that have not ended."""
        if self._running is None:
            return set()
        return set(self._running.number.tolist())

    def add(
        self,
        contexts: PrefilledBatch,
        text: ndarray,  # [R] the text of each position, ascending
        position: ndarray,  # [R] token index
        keys: ndarray,  # [R, m]
        automaton: ndarray,  # next state [states, V], as syntax/grammar.py makes it
        max_tokens: int,
        origins: Sequence[Origin],  # [R]
        opening: Opening | None = None,
    ) -> range:
        """Start m draws at each position; their numbers, position by position.

        The draws are given what `opening` writes, if anything: they come from the model's
        distribution among draws that begin with it.
        """
        contexts.branch(text, position)
        count, m = keys.size, keys.shape[1]
        first = len(self._lengths)
        numbers = range(first, first + count)
        self._lengths = np.pad(self._lengths, (0, count))
        more = max(0, max_tokens - self._tokens.shape[1])
        self._tokens = np.pad(self._tokens, ((0, count), (0, more)))
        self.names += [None] * count
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
        if opening is not None:
            names = draw_names(
                contexts, text, keys, opening, max_tokens, origins
            )
            draws, text = self._after_names(
                contexts, text, draws, automaton, names
            )
            if not len(draws.number):
                return numbers
            node_slot = index_within_group(text)
        if self._tree is None or self._running is None:
            self._tree, self._running = contexts, draws
            self._node_text, self._node_slot = text, node_slot
            return numbers
        # Continuous batching: texts and nodes are numbered on from the running ones.
        first_text = len(self._tree.row_of_text)
        first_node = len(self._node_text)
        self._tree.admit(contexts)
        draws = replace(draws, node=draws.node + first_node)
        self._running = self._running.concatenate(draws)
        self._node_text = np.concatenate([self._node_text, text + first_text])
        self._node_slot = np.concatenate([self._node_slot, node_slot])
        return numbers

    def _after_names(
        self,
        contexts: PrefilledBatch,
        text: ndarray,  # [R]
        draws: _RunningDraws,  # [R * m]
        automaton: ndarray,
        names: Sequence[DrawnName],  # [R]
    ) -> tuple[_RunningDraws, ndarray]:
        """Write the drawn names; the draws that go on behind them, and each node's text."""
        m = len(draws.number) // len(names)
        alive, states = [], []
        # The nodes of the frontier behind the names, by position, beginning and next token.
        nodes: dict[tuple[int, int, int], int] = {}
        for index, number in enumerate(draws.number.tolist()):
            name = names[index // m]
            self.names[number] = name.given
            drawn = name.draws[index % m]
            if drawn is None:
                continue
            prefix = name.prefixes[drawn.prefix]
            tokens = [*prefix.tokens, drawn.token]
            self._tokens[number, : len(tokens)] = tokens
            self._lengths[number] = len(tokens)
            state = int(automaton[prefix.state, drawn.token])
            if state >= 0 and len(tokens) < draws.max_tokens[index]:
                alive.append(index)
                states.append(state)
                key = (index // m, drawn.prefix, drawn.token)
                draws.node[index] = nodes.setdefault(key, len(nodes))
        draws = draws.select(np.array(alive, dtype=np.int64))
        node_text = text[[position for position, _, _ in nodes]]
        if nodes:
            contexts.extend(
                node_text,
                index_within_group(node_text),
                np.array([names[i].slots[prefix] for i, prefix, _ in nodes]),
                np.array([token for _, _, token in nodes]),
            )
        state_of_draw = np.array(states, dtype=draws.state.dtype)
        return replace(draws, state=state_of_draw), node_text

    def step(self) -> None:
        """Draw one token for each running draw, and run those that go on.

        Raises NonFiniteError where the model's logits are not finite.
        """
        if self._tree is None or self._running is None:
            return
        running = self._running
        length = self._lengths[running.number]
        u = uniforms(running.key, length)
        drawn = self._draw(self._tree, running.node, u)
        failed = running.number[drawn < 0]
        if len(failed):
            origin = self._origins[failed[0]]
            raise NonFiniteError("the probability of a call's token", *origin)
        self._tokens[running.number, length] = drawn
        self._lengths[running.number] = length + 1
        # Closed and dead draws have a negative state.
        state = self._next_states(running, drawn)
        room = length + 1 < running.max_tokens
        alive = (state >= 0) & room
        if not alive.any():
            self._tree = None
            self._running = None
            return
        draws = replace(running.select(alive), state=state[alive])
        self._advance(self._tree, draws, drawn[alive])

    def _advance(
        self,
        tree: TreeBatch,
        draws: _RunningDraws,
        drawn: ndarray,
    ) -> None:
        """Feed the tokens that `draws` have drawn; they are the new frontier."""
        # Draws of one node that drew the same token are one node again: a pair of node
        # and token, as one number, names the new node.
        vocabulary_size = self._model.vocabulary_size
        pair = draws.node * vocabulary_size + drawn
        pairs, node = np.unique(pair, return_inverse=True)
        parent_node, token = np.divmod(pairs, vocabulary_size)
        parent_slot = self._node_slot[parent_node]
        self._node_text = self._node_text[parent_node]
        self._node_slot = index_within_group(self._node_text)
        self._running = replace(draws, node=node)
        tree.extend(self._node_text, self._node_slot, parent_slot, token)

    def _automaton_index(self, automaton: ndarray) -> int:
        for index, known in enumerate(self._automata):
            if known is automaton:
                return index
        self._automata.append(automaton)
        return len(self._automata) - 1

    def _next_states(
        self,
        running: _RunningDraws,
        drawn: ndarray,
    ) -> ndarray:
        """The automata's states after one more token."""
        state = np.empty_like(running.state)
        for index, automaton in enumerate(self._automata):
            own = running.automaton == index
            before = running.state[own]
            state[own] = automaton[before, drawn[own]]
        return state

    def _draw(
        self,
        tree: TreeBatch,
        node: ndarray,
        u: ndarray,
    ) -> ndarray:
        """The next token [N] of draws at `node` [N] with random numbers u [N].

        Minus one where the model's logits are not finite.
        """
        # A grid of random numbers: nodes x the most draws that one of them has.
        order = np.argsort(node, kind="stable")
        column = np.empty_like(node)
        column[order] = index_within_group(node[order])
        nodes, most_draws = len(self._node_text), int(column.max()) + 1
        grid = np.zeros((nodes, most_draws))
        grid[node, column] = u
        u_grid = tree.model.tensor(grid)
        # Logits come in chunks of nodes, to bound the memory they take.
        chunks = []
        start = 0
        for logits in tree.logits(self._node_text, self._node_slot):
            end = start + len(logits)
            chunks.append(invert_cdf(logits, u_grid[start:end]))
            start = end
        token_grid = torch.cat(chunks).cpu().numpy()
        tokens: ndarray = token_grid[node, column]
        return tokens
