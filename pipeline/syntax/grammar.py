"""What a draw may still become, token by token (paper section 2, "Sampling API Calls").

In: a tool and the strings of a vocabulary. Out: a table from (state, token) to the next state, so that
sampling ends closed draws and gives up hopeless ones without looking at strings. A draw is hopeless when no
continuation makes it a call of its tool: a wrong name, a line break, a bracket, a special token, an input
for the calendar. The last word on a closed draw is calls.parse_call's; this table never ends a draw that it
would accept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from pipeline.syntax.calls import CONTROLS, END
from tools_service.tools.contract import ToolName

CLOSED, DEAD = -1, -2
_HOPELESS = re.compile(rf"[{CONTROLS}\[]")


def call_head(tool: ToolName) -> str:
    """What every call of `tool` begins with; all of it where the tool takes no input."""
    return f"{tool}()" if tool == "Calendar" else f"{tool}("


def automaton(head: str, pieces: Sequence[str], special: Sequence[int], vocabulary: int) -> np.ndarray:
    """Next state [states, vocabulary] int16. A state counts the characters of ``Tool(`` written; draws
    start in 0.

    Ids beyond `pieces` (embeddings without a token) and `special` ones are dead.
    """
    table = np.full((len(head) + 1, vocabulary), DEAD, dtype=np.int16)
    for state in range(len(head)):
        expected = head[state:]
        for token, piece in enumerate(pieces):
            if expected.startswith(piece):
                table[state, token] = state + len(piece)
            elif piece.startswith(expected):
                table[state, token] = _inside(piece[len(expected) :], len(head))
    table[-1, : len(pieces)] = [_inside(piece, len(head)) for piece in pieces]
    table[:, list(special)] = DEAD
    return table


def _inside(piece: str, state: int) -> int:
    """The state after `piece` in a call's input."""
    before, end, _ = piece.partition(END)
    if _HOPELESS.search(before):
        return DEAD
    return CLOSED if end else state
