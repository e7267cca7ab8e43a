"""A table of results, before it is written in a format (formats.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

DASH = "–"
"""A value that was not measured, or that does not exist."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A value as it is shown, and as a number; percentages are from 0 to 100. None is a dash."""

    text: str = DASH
    value: float | None = None
    interval: tuple[float, float] | None = None
    best: bool = False

    @property
    def shown(self) -> str:
        """The text with its interval."""
        bounds = f" ({self.interval[0]:.1f}{DASH}{self.interval[1]:.1f})" if self.interval else ""
        return self.text + bounds

    @property
    def shown_value(self) -> float | None:
        """The number as it is shown, rounded."""
        return None if self.value is None else float(self.text.replace(",", ""))

    @classmethod
    def percent(cls, share: float | None, interval: tuple[float, float] | None = None) -> Cell:
        """A share from 0 to 1, in percent, with its interval if that is given."""
        if share is None:
            return cls()
        bounds = (100 * interval[0], 100 * interval[1]) if interval else None
        return cls(f"{100 * share:.1f}", 100 * share, bounds)

    @classmethod
    def number(cls, value: float | None, decimals: int = 1) -> Cell:
        """A number, with commas between thousands."""
        return cls() if value is None else cls(f"{value:,.{decimals}f}", value)


@dataclass(frozen=True, slots=True)
class Row:
    """A model or a setting."""

    titles: tuple[str, ...]
    """One for each of the first columns."""
    cells: tuple[Cell, ...]
    paper: bool = False
    """Whether these are the paper's own figures."""


@dataclass(frozen=True, slots=True)
class ResultTable:
    """Rows with titles, in columns that may have a common heading."""

    title: str
    row_titles: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    """Heading of a group of columns, empty for none, and heading of the column."""
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def with_best(rows: Sequence[Row], *, lowest: bool = False, every: int = 1) -> tuple[Row, ...]:
    """Mark the best values of each column: of the measured rows, and of the paper's, each apart.

    `every` is the distance between the columns that are compared, from the first on.
    A column with one value, or with equal values only, has no mark. Values that are shown alike are equal.
    """
    marked = list(rows)
    for paper in (False, True):
        block = [number for number, row in enumerate(rows) if row.paper == paper]
        for column in range(0, len(rows[0].cells) if block else 0, every):
            values = [v for n in block if (v := rows[n].cells[column].shown_value) is not None]
            if len(set(values)) < 2:
                continue
            best = min(values) if lowest else max(values)
            for number in block:
                cells = list(marked[number].cells)
                if cells[column].shown_value == best:
                    cells[column] = replace(cells[column], best=True)
                    marked[number] = replace(marked[number], cells=tuple(cells))
    return tuple(marked)
