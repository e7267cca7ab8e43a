"""A token automaton for sampled calls (paper section 2, "Sampling API Calls").

In: the first characters of a tool's calls, and the strings of a vocabulary. Out: a table from
(state, token) to the next state, with which the sampler ends finished calls and abandons impossible
ones: a wrong name, a line break, a bracket, a special token, an input for a tool that takes none.
It never abandons a sample that `calls.parse_call` would accept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tools_service.syntax.calls import CONTROLS

CLOSED, DEAD = -1, -2  # the call is finished; the sample can no longer become a call
_FORBIDDEN = re.compile(rf"[{CONTROLS}\[]")


def call_head(tool: str, takes_input: bool = True) -> str:
    """The first characters of every call of `tool` after ``<API>``."""
    return f"{tool}(" if takes_input else f"{tool}()"


def automaton(
    head: str,
    token_strings: Sequence[str],
    special_ids: Sequence[int],
    vocabulary_size: int,
    *,
    ends_at_arrow: bool = False,
) -> np.ndarray:
    """The next state for each state and token, [states, vocabulary_size] int16.

    State n means that n characters of `head` are written; sampling starts in state 0.
    `special_ids`, and ids without a string (embeddings that the tokenizer does not use), lead to
    DEAD. With `ends_at_arrow`, ``->`` ends a call as ``]`` does; a further state means that its ``-``
    is the last character.
    """
    inside = len(head)
    ends = re.compile(r"\]|->" if ends_at_arrow else r"\]")
    table = np.full((inside + 1 + ends_at_arrow, vocabulary_size), DEAD, dtype=np.int16)

    def after(string: str) -> int:
        """The state after `string` is written behind the head."""
        end = ends.search(string)
        if _FORBIDDEN.search(string[: end.start()] if end else string):
            return DEAD
        return CLOSED if end else inside + (ends_at_arrow and string.endswith("-"))

    for state in range(inside):
        expected = head[state:]
        for token, string in enumerate(token_strings):
            if expected.startswith(string):
                table[state, token] = state + len(string)
            elif string.startswith(expected):
                table[state, token] = after(string[len(expected) :])
    for state, before in enumerate(("", "-")[: 1 + ends_at_arrow], inside):
        table[state, : len(token_strings)] = [after(before + string) for string in token_strings]
    table[:, list(special_ids)] = DEAD
    return table


@dataclass(frozen=True, slots=True, eq=False)
class Opening:
    """The tokens that can write the beginning of a call, ``Tool(``: `tokens` [U], ascending.

    `next_state` [length, U] is the number of characters written after each state and token: DEAD for
    another beginning, `length` for a token that completes this one, whatever else stands in it.
    """

    length: int
    tokens: np.ndarray
    next_state: np.ndarray


def opening(text: str, token_strings: Sequence[str], special_ids: Sequence[int]) -> Opening:
    """How the tokens of a vocabulary can write `text`; special tokens cannot."""
    written = np.full((len(text), len(token_strings)), DEAD, dtype=np.int16)
    for state in range(len(text)):
        expected = text[state:]
        for token, string in enumerate(token_strings):
            if expected.startswith(string) or string.startswith(expected):
                written[state, token] = min(state + len(string), len(text))
    written[:, list(special_ids)] = DEAD
    tokens = np.flatnonzero((written != DEAD).any(axis=0))
    return Opening(len(text), tokens, written[:, tokens])
