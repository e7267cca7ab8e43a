"""Counts over the rows of an annotation that is not finished, for `status`; its manifest has none yet.

In: the row files. Out: texts by status, failures by reason, kept calls by tool, and a rate from the times of
the files. Read are only the columns that this needs, and each file once: a complete file never changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.base.records import reason_kind
from pipeline.storage.row_files import ROWS, RowFileError, parquet_files, read_file_batches


@dataclass(slots=True)
class RowCounts:
    """Sums over the complete files."""

    texts: int = 0
    status: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    written: list[tuple[float, int]] = field(default_factory=list)
    """Time of each file (seconds since 1970), and its texts."""

    def rate(self, since: float | None) -> float | None:
        """Texts per second from the first file after `since` to the last one; None if there are too few."""
        files = sorted(entry for entry in self.written if since is None or entry[0] >= since)
        if len(files) < 2 or files[-1][0] <= files[0][0]:
            return None
        return sum(texts for _, texts in files[1:]) / (files[-1][0] - files[0][0])


class RowCounter:
    """Counts the rows of a folder, at each call those of new files only."""

    def __init__(self, folder: Path, tau_f: Mapping[str, float]) -> None:
        self._folder, self._tau_f = folder, tau_f
        self._counts = RowCounts(kept=Counter(dict.fromkeys(tau_f, 0)))
        self._read: set[str] = set()

    def count(self) -> RowCounts:
        """The counts now. A file that cannot be read is left out; annotate redoes its texts."""
        for path in parquet_files(self._folder / ROWS):
            if path.name not in self._read:
                self._read.add(path.name)
                try:
                    self._add(path)
                except (OSError, RowFileError):
                    continue
        return self._counts

    def _add(self, path: Path) -> None:
        batches = list(read_file_batches(path, ["status", "reason", "calls"]))
        texts = sum(batch.num_rows for batch in batches)
        self._counts.written.append((path.stat().st_mtime, texts))
        self._counts.texts += texts
        for batch in batches:
            self._counts.status.update(batch["status"].to_pylist())
            failed = batch.filter(pc.equal(batch["status"], "failed"))
            self._counts.failures.update(reason_kind(reason or "") for reason in failed["reason"].to_pylist())
            self._counts.kept.update(self._kept(batch))

    def _kept(self, batch: pa.RecordBatch) -> Counter[str]:
        calls = batch["calls"].flatten()
        kept: Counter[str] = Counter()
        for tool, tau_f in self._tau_f.items():
            reaching = pc.and_(
                pc.equal(calls.field("tool"), tool), pc.greater_equal(calls.field("gain"), tau_f)
            )
            kept[tool] = pc.sum(reaching).as_py() or 0
        return kept
