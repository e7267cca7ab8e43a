"""Output folders: one writer at a time, every row once, small files written whole.

What `annotate` writes is a folder of Parquet files, one for each batch, which get their names when they are
complete; and a Parquet file's index stands at its end. So the rows on disk are the only record of what is
done; there is no second one that could disagree (docs/decisions/0004). `recover_rows` brings such a folder into
order after anything that may have happened to the processes that wrote it. Knows nothing of what is in the
rows but their `text_id`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tools_service.base.files import PART

logger = logging.getLogger(__name__)

_READERS = 8
_BATCH_ROWS = 1_024
ROWS = "rows"

Ids = NDArray[np.int64]


def write_rows(folder: Path, rows: pa.Table) -> None:
    """One batch as a file of its own, on disk when this returns. The same batch again is the same file."""
    ids = rows["text_id"].to_numpy()
    path = folder / f"{hashlib.blake2b(ids.tobytes(), digest_size=12).hexdigest()}.parquet"
    # Two processes may be at it: one that was given up may still run.
    part = folder / f"{path.name}.{uuid.uuid4().hex}{PART}"
    try:
        with part.open("wb") as file:
            pq.write_table(rows, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def parquet_files(folder: Path) -> list[Path]:
    """The folder's finished Parquet files, in the order of their names."""
    return sorted(folder.glob("*.parquet"))


def recover_rows(folder: Path) -> Ids:
    """Remove what was not finished and what stands there twice; the ids of all rows, sorted.

    A file without its index was being written when its writer died: it goes, its texts will be done again. An
    id can stand in two files if tasks of a killed run outlived it for a moment while the next one had begun;
    equal ids have equal rows, so any one of them may stay. To be called while nothing writes.
    """
    for part in folder.glob(f"*{PART}"):
        part.unlink()
    files = parquet_files(folder)
    with ThreadPoolExecutor(_READERS) as pool:
        ids = list(pool.map(_ids_or_remove, files))
    together = np.concatenate([np.empty(0, np.int64), *ids])
    together.sort()  # in place: there may be 10^9 of them
    if not (together[1:] == together[:-1]).any():
        return together
    _remove_twins(files, ids)
    return np.unique(together)


def remove_rows(folder: Path, ids: Iterable[int]) -> int:
    """Remove the rows of these texts, so that they are done again; how many. While nothing writes."""
    wanted, removed = pa.array(sorted(ids), pa.int64()), 0
    for path in parquet_files(folder) if len(wanted) else []:
        gone = pc.is_in(pq.read_table(path, columns=["text_id"])["text_id"], wanted)
        if number := pc.sum(gone).as_py():
            _keep(path, pc.invert(gone))
            removed += number
    return removed


def _keep(path: Path, rows: pa.Array) -> None:
    """Rewrite a file with the rows at these indices, or where this mask is true; without any it goes."""
    whole = pq.read_table(path)
    left = whole.filter(rows) if pa.types.is_boolean(rows.type) else whole.take(rows)
    if not left.num_rows:
        path.unlink()
        return
    part = path.with_name(path.name + PART)
    pq.write_table(left, part)
    part.replace(path)


def _ids_or_remove(path: Path) -> Ids:
    try:
        ids: Ids = pq.read_table(path, columns=["text_id"])["text_id"].to_numpy()
    except (pa.ArrowInvalid, EOFError) as error:
        logger.warning("%s: was not written to its end, its texts will be done again (%s)", path, error)
        path.unlink()
        return np.empty(0, np.int64)
    return ids


def _remove_twins(files: Sequence[Path], ids: Sequence[Ids]) -> None:
    seen: set[int] = set()
    for path, own in zip(files, ids, strict=True):
        fresh = [index for index, text_id in enumerate(own.tolist()) if not _seen(seen, text_id)]
        if len(fresh) == len(own):
            continue
        logger.warning("%s: %d rows stand in other files too and are removed", path, len(own) - len(fresh))
        _keep(path, pa.array(fresh, pa.int64()))


def _seen(seen: set[int], text_id: int) -> bool:
    known = text_id in seen
    seen.add(text_id)
    return known


def read_batches(folder: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of an annotation folder, streamed, in the order of the files' names.

    File by file: a dataset of them all keeps 100 kB and more of each until it is done, and there are many.
    """
    for path in parquet_files(folder / ROWS):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns)):
                yield batch.select(columns)  # also where one is missing, which is an error


def read_failed(folder: Path) -> Iterator[tuple[int, str]]:
    """Id and reason of each text that failed; other rows are skipped as Arrow."""
    for batch in read_batches(folder, ["text_id", "status", "reason"]):
        failed = batch.filter(pc.equal(batch["status"], "failed"))
        yield from zip(failed["text_id"].to_pylist(), failed["reason"].to_pylist(), strict=True)


def read_rows(folder: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The same as dictionaries."""
    for batch in read_batches(folder, columns):
        yield from batch.to_pylist()
