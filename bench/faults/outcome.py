"""The outcome of a round, and the comparison of its output with that of an undisturbed run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.storage.lock import LOCK
from pipeline.storage.logs import LOGS


@dataclass(frozen=True, kw_only=True)
class Round:
    """One fault and its consequences."""

    kind: str
    moment: str
    starts: int
    """How often the command was started."""
    missing: int
    """Rows, for finetune events of metrics.jsonl and weights, that the undisturbed run has."""
    twice: int
    different: int
    again: int = 0
    """Texts whose annotation had ended, but whose row was lost."""
    begun_again: int = 0
    """The same, and texts whose annotation was under way."""
    allowed: int = 0
    """Limit of `again`."""
    allowed_begun: int = 0
    """Limit of `begun_again`."""
    seconds: float
    message: str = ""
    """What the user saw at the end of the command that the fault ended."""
    problems: Sequence[str] = ()
    """Whatever else is wrong: leftovers, processes, exit codes, messages."""

    @property
    def passed(self) -> bool:
        """Whether the output is that of an undisturbed run, little work was lost and nothing is left."""
        same = not (self.missing or self.twice or self.different or self.problems)
        return same and self.again <= self.allowed and self.begun_again <= self.allowed_begun

    def __str__(self) -> str:
        problems = "".join(f"\n        {problem}" for problem in self.problems)
        return (
            f"{self.kind:<13}{self.moment:<48}{self.starts:>6}{self.missing:>8}{self.twice:>6}"
            f"{self.different:>7}{self.again:>6}{self.begun_again:>6}{self.allowed:>8}{self.seconds:>7.1f}  "
            f"{'passed' if self.passed else 'FAILED'}{problems}"
        )


HEADER = (
    f"{'kind':<13}{'moment':<48}{'starts':>6}{'missing':>8}{'twice':>6}{'differ':>7}{'again':>6}{'begun':>6}"
    f"{'allowed':>8}{'s':>7}"
)


def compare(found: Sequence[tuple[Any, Any]], expected: Mapping[Any, Any]) -> dict[str, int]:
    """Keys of `expected` that are missing in `found`, there twice, or there with another value."""
    times = Counter(key for key, _ in found)
    return {
        "missing": len(expected.keys() - times.keys()),
        "twice": sum(times.values()) - len(times),
        "different": sum(key not in expected or expected[key] != value for key, value in found),
    }


def rows_by_id(folder: Path) -> list[tuple[int, Any]]:
    """The rows of a folder of Parquet files with their ids, sorted."""
    rows = pq.read_table(folder).sort_by("text_id").to_pylist()
    return [(row["text_id"], row) for row in rows]


def listing(folder: Path) -> set[str]:
    """All files and folders in `folder`, without logs (their names are processes') and locks (they stay)."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in names if LOGS not in Path(name).parts and Path(name).name != LOCK}


def leftovers(folder: Path, undisturbed: Path) -> list[str]:
    """A problem for each name that the folder of an undisturbed run does not have."""
    return [f"left behind: {name}" for name in sorted(listing(folder) - listing(undisturbed))]
