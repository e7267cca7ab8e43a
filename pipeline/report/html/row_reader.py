"""The rows of an annotation folder for a report, which may be written while a run is going on.

In: a folder. Out: its rows, streamed in batches of Arrow, each text once. Files that cannot be read are left
out and named. Nothing is removed or rewritten, unlike by `recover_rows`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.storage.row_files import ROWS, RowFileError, parquet_files, read_file_batches


class RowReader:
    """The complete row files that the folder holds now; files that are written later are not in it."""

    def __init__(self, folder: Path, *, unfinished: bool) -> None:
        """In an unfinished run two files may hold one text, which a start of the run then removes."""
        self._files = parquet_files(folder / ROWS)
        self._problems: dict[Path, str] = {}
        self._kept: dict[Path, NDArray[np.bool_]] = self._first_of_each_text() if unfinished else {}

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each file that could not be read, or not to its end, so far."""
        return tuple(self._problems.values())

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All rows, at most about 1,000 at a time, sorted by the file's name."""
        for path in self._files:
            start = 0
            for batch in self._read(path, columns):
                stop = start + batch.num_rows
                if path in self._kept:
                    yield batch.filter(pa.array(self._kept[path][start:stop]))
                else:
                    yield batch
                start = stop

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Like `batches`, as dictionaries."""
        for batch in self.batches(columns):
            yield from batch.to_pylist()

    def _read(self, path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            yield from read_file_batches(path, columns)
        except RowFileError as error:
            self._problems[path] = str(error)

    def _first_of_each_text(self) -> dict[Path, NDArray[np.bool_]]:
        """By file with a text of an earlier file, the rows to keep."""
        ids_by_file = [
            np.concatenate(
                [
                    np.empty(0, np.int64),
                    *(batch["text_id"].to_numpy() for batch in self._read(path, ["text_id"])),
                ]
            )
            for path in self._files
        ]
        ids = np.concatenate([np.empty(0, np.int64), *ids_by_file])
        is_first = np.zeros(len(ids), bool)
        is_first[np.unique(ids, return_index=True)[1]] = True
        ends = np.cumsum([len(ids) for ids in ids_by_file])
        first_by_file = zip(self._files, np.split(is_first, ends[:-1]), strict=True) if len(ends) else ()
        return {path: first for path, first in first_by_file if not first.all()}
