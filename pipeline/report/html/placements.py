"""Where the kept calls of each tool stand: in the text, and between the characters around them.

In: batches of annotation rows with their `CallBatch`. Out: `Placement`s.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from pipeline.method.selection import UNSPACED
from pipeline.report.html.data import Histogram, Placement
from pipeline.report.html.scored_calls import CallBatch

PLACES = (
    "at the start",
    "at the end",
    "inside a number",
    "inside a word",
    "after =",
    "before a number",
    "before punctuation",
    "between words",
)
"""Every call has exactly one of these, the first that fits."""

_BINS = 10
_NUMBER_BEFORE, _NUMBER_AFTER = re.compile(r"\d[.,]?$"), re.compile(r"[.,]?\d")
_LETTER = rf"[^\W{UNSPACED}]"  # scripts without spaces have a word boundary everywhere
_WORD_BEFORE, _WORD_AFTER = re.compile(rf"{_LETTER}['’-]?$"), re.compile(rf"['’-]?{_LETTER}")
_NUMERAL = re.compile(r"\s*[^\w\s.,;:!?)]?\d")  # with a sign or a currency
_PUNCTUATION = re.compile(r"\s*[^\w\s([{\"'“‘«¿¡#$€£@<]")


def place_of(text: str, position: int) -> str:
    """One of PLACES: what is around a call that stands before the character at `position`."""
    before, after = text[max(0, position - 40) : position], text[position : position + 40]
    if not text[:position].strip():
        return "at the start"
    if not text[position:].strip():
        return "at the end"
    if _NUMBER_BEFORE.search(before) and _NUMBER_AFTER.match(after):
        return "inside a number"
    if _WORD_BEFORE.search(before) and _WORD_AFTER.match(after):
        return "inside a word"
    if before.rstrip().endswith("="):
        return "after ="
    if _NUMERAL.match(after):
        return "before a number"
    return "before punctuation" if _PUNCTUATION.match(after) else "between words"


class Placements:
    """Counts over all calls that were added and reach their tool's tau_f."""

    def __init__(self, tools: Sequence[str], tau_f: Mapping[str, float]) -> None:
        self._tools = tools
        self._tau_f = np.array([tau_f[tool] for tool in tools])
        self._counts = np.zeros((len(tools), _BINS), np.int64)
        self._places: list[Counter[str]] = [Counter() for _ in tools]

    def add(self, rows: pa.RecordBatch, calls: CallBatch) -> None:
        """Add the kept calls of `rows` (text)."""
        kept = np.flatnonzero(calls.gain >= self._tau_f[calls.tool])
        kept_rows, row_of = np.unique(calls.row[kept], return_inverse=True)
        texts = rows["text"].take(pa.array(kept_rows)).to_pylist()
        places = zip(row_of.tolist(), calls.tool[kept].tolist(), calls.position[kept].tolist(), strict=True)
        for row, tool, position in places:
            text = texts[row]
            self._counts[tool, min(_BINS - 1, _BINS * position // max(1, len(text)))] += 1
            self._places[tool][place_of(text, position)] += 1

    def placements(self) -> tuple[Placement, ...]:
        """One for each tool."""
        edges = tuple(number / _BINS for number in range(_BINS + 1))
        return tuple(
            Placement(
                tool=tool,
                in_text=Histogram(edges=edges, counts=tuple(counts.tolist())),
                places={place: places[place] for place in PLACES if places[place]},
            )
            for tool, counts, places in zip(self._tools, self._counts, self._places, strict=True)
        )
