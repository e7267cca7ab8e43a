"""Atomic writes of Parquet files."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write_parquet(path: Path, rows: pa.Table, part: Path) -> None:
    """Write `rows` to `part`, synced to disk, and rename it to `path`. Raises OSError, and leaves no part."""
    try:
        with part.open("wb") as file:
            pq.write_table(rows, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
