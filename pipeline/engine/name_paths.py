"""The token sequences in which a model writes a tool's name (paper section 2, "Sampling API
Calls"; docs/method.md, "Draws given the tool's name").

In: what the model gives to the next token behind each beginning of the name that was run, and
the random numbers of the draws at one position. Out: which beginnings to run next; of each
draw the tokens up to the one that completes ``Tool(``. The likeliest beginnings come first,
and no more run than the draws need. No model runs here.

Shapes: U tokens that can stand in the name, m draws, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy import ndarray

from pipeline.syntax.grammar import DEAD, Opening

# At most so many beginnings run at a position, the empty one included.
MAX_PREFIXES = 64
# What was not followed may add this share to the recorded probability of the name.
_OPEN_SHARE = 1e-3
# Each forward leaves at most this share of the open probability for later ones.
_LATER_SHARE = 0.1


@dataclass(slots=True, eq=False)
class Prefix:
    """A beginning of the name that was run. `probability` is that of its tokens after <API>."""

    tokens: tuple[int, ...]
    state: int  # characters of the name
    probability: float
    next_probabilities: ndarray  # [U]
    # The longer beginnings that were run, by the column of their next token.
    children: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NamedDraw:
    """A draw's tokens up to the one that completes the name."""

    prefix: int  # the beginning that `token` follows
    token: int


@dataclass(frozen=True, slots=True, eq=False)
class _Bounds:
    """Bounds of p(token and, later, the name) behind one beginning, cumulated over U tokens."""

    lower: ndarray
    upper: ndarray


class NamePaths:
    """The beginnings of a name at one position, and the m draws there."""

    def __init__(
        self,
        opening: Opening,
        max_tokens: int,
        u: ndarray,  # [m, T] random numbers, T = max_tokens
        probabilities: ndarray,  # [U] right after <API>
    ) -> None:
        """`max_tokens` is the most that a draw may have."""
        self.opening = opening
        self.max_tokens = max_tokens
        self.u = u
        root = Prefix((), 0, 1.0, probabilities)
        self.prefixes: list[Prefix] = [root]
        # What the draws have come to; None for a draw that is not certain.
        self.draws: list[NamedDraw | None] = [None] * len(u)
        self.probability = 0.0
        # Probability of each beginning not run yet, by its parent and column.
        self._open: dict[tuple[int, int], float] = {}
        self._bounds: list[_Bounds] = []
        self._opened(0)
        self._evaluate()

    def to_run(self) -> list[tuple[int, int]]:
        """The beginnings to run next: a beginning that has run, and the column of one token
        more. None if the draws are certain."""
        room = MAX_PREFIXES - len(self.prefixes)
        left = sum(self._open.values())
        known = left <= _OPEN_SHARE * self.probability
        if not left or not room or (known and None not in self.draws):
            return []
        likeliest = sorted(self._open, key=lambda key: -self._open[key])
        later = _LATER_SHARE * left
        count = 0
        while left > later and count < min(room, len(likeliest)):
            left -= self._open[likeliest[count]]
            count += 1
        return sorted(likeliest[:count])

    def add(
        self,
        beginnings: Sequence[tuple[int, int]],
        probabilities: ndarray,  # [beginnings, U]
    ) -> None:
        """What the model gives to the next token behind beginnings that `to_run` named."""
        for (parent, column), row in zip(
            beginnings, probabilities, strict=True
        ):
            before, number = self.prefixes[parent], len(self.prefixes)
            tokens = (*before.tokens, int(self.opening.tokens[column]))
            state = int(self.opening.next_state[before.state, column])
            probability = self._open.pop((parent, column))
            before.children[column] = number
            self.prefixes.append(Prefix(tokens, state, probability, row))
            self._opened(number)
        self._evaluate()

    def _opened(self, number: int) -> None:
        """List the beginnings that are one token longer."""
        prefix = self.prefixes[number]
        for column in self._continuing(prefix):
            p = float(prefix.next_probabilities[column])
            self._open[number, int(column)] = prefix.probability * p

    def _continuing(self, prefix: Prefix) -> ndarray:
        """Columns of tokens after which the name is still incomplete, and has room."""
        if len(prefix.tokens) + 2 > self.max_tokens:
            return np.zeros(0, dtype=np.int64)
        next_state = self.opening.next_state[prefix.state]
        incomplete = (next_state != DEAD) & (next_state < self.opening.length)
        return np.flatnonzero(incomplete)

    def _evaluate(self) -> None:
        """The probability of the name, and the draws, by what is known so far."""
        bounds: list[_Bounds] = [_Bounds(self.u, self.u)] * len(self.prefixes)
        # A longer beginning stands behind its parent.
        for number in reversed(range(len(self.prefixes))):
            prefix = self.prefixes[number]
            next_state = self.opening.next_state[prefix.state]
            completes = next_state == self.opening.length
            if len(prefix.tokens) >= self.max_tokens:
                completes = np.zeros_like(completes)
            p = prefix.next_probabilities
            lower = np.where(completes, p, 0.0)
            upper = lower.copy()
            # Behind a beginning that was not run, the name may have any probability.
            continuing = self._continuing(prefix)
            upper[continuing] = p[continuing]
            for column, child in prefix.children.items():
                lower[column] = p[column] * bounds[child].lower[-1]
                upper[column] = p[column] * bounds[child].upper[-1]
            bounds[number] = _Bounds(lower.cumsum(), upper.cumsum())
        self._bounds = bounds
        self.probability = float(bounds[0].lower[-1])
        self.draws = [self._draw(u) for u in self.u]

    def _draw(self, u: ndarray) -> NamedDraw | None:
        """The draw with random numbers u [T]; None while it is not certain."""
        number = 0
        while True:
            prefix = self.prefixes[number]
            column = self._column(number, float(u[len(prefix.tokens)]))
            if column is None:
                return None
            if column not in prefix.children:
                return NamedDraw(number, int(self.opening.tokens[column]))
            number = prefix.children[column]

    def _column(self, number: int, u: float) -> int | None:
        """The first token whose cumulative probability, given the name, exceeds u.

        None if that depends on beginnings that were not run.
        """
        lower, upper = self._bounds[number].lower, self._bounds[number].upper
        total = lower[-1]
        if not total > 0.0:
            return None
        # Rounding may take u * total to the total: the last possible token has that.
        last = int(np.searchsorted(lower, total))
        column = int(np.searchsorted(lower, u * total, side="right"))
        column = min(column, last)
        if not any(self._open.values()):
            return column
        # What is cumulated up to a token is smallest, as a share of the whole, where this
        # part has its lower bounds and the rest its upper ones; and largest the other way.
        if lower[column] * (1 - u) <= u * (upper[-1] - upper[column]):
            return None
        before = column - 1
        if column and upper[before] * (1 - u) > u * (total - lower[before]):
            return None
        return column
