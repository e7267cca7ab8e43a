"""Annotated texts with calls that may be kept, streamed from the folders of a merge.

In: annotation folders and tau_f by tool. Out: rows of text_id, text and calls, without the calls below the
lowest tau_f. A text that several folders hold is refused, or its calls are united (same_texts.py). Knows
files and Arrow; method/merging.py decides which calls stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.augmentation.same_texts import UnitedRows, require_distinct, require_equal_texts
from pipeline.base.config import SameTexts
from pipeline.method.merging import TauF
from pipeline.storage.row_files import read_batches

_COLUMNS = ("text_id", "text", "calls")


@dataclass(frozen=True, slots=True)
class ReachingRows:
    """Rows with a call that may be kept."""

    texts: int
    """Different texts in the folders, with such a call or without."""
    read: Callable[[], Iterator[dict[str, Any]]]
    """Gives the rows from their beginning, as often as it is called."""


@contextmanager
def rows_of(
    folders: Sequence[Path], tau_f: TauF, same_texts: SameTexts = "refuse", scratch: Path | None = None
) -> Iterator[ReachingRows]:
    """The rows that reach tau_f, each text once.

    United calls wait in unnamed files in `scratch`, which the system removes; by default in its folder for
    temporary files. Raises SameTextError if folders share a text that may not be united.
    """
    if same_texts == "refuse" or len(folders) == 1:
        texts = require_distinct(folders)
        yield ReachingRows(texts, lambda: rows_reaching(folders, tau_f))
        return
    texts = require_equal_texts(folders)
    with UnitedRows(rows_reaching(folders, tau_f), texts, scratch) as united:
        yield ReachingRows(texts, united.read)


def rows_reaching(folders: Sequence[Path], tau_f: TauF) -> Iterator[dict[str, Any]]:
    """The rows with a gain of at least the lowest tau_f, without their calls below it.

    Most calls and texts are below it; dropping them in Arrow makes a merge several times faster.
    """
    lowest = min(tau_f.values(), default=0.0)
    for folder in folders:
        for batch in read_batches(folder, _COLUMNS):
            calls = batch["calls"].flatten()  # [calls of all rows]
            keep = pc.greater_equal(calls.field("gain"), lowest)
            row_of_call = pc.list_parent_indices(batch["calls"]).filter(keep)
            calls_per_row = np.bincount(row_of_call, minlength=batch.num_rows)
            offsets = np.concatenate([[0], calls_per_row.cumsum()])
            kept_calls = pa.ListArray.from_arrays(offsets, calls.filter(keep))
            index = batch.schema.get_field_index("calls")
            rows = batch.set_column(index, "calls", kept_calls).filter(pa.array(calls_per_row > 0))
            yield from rows.to_pylist()
