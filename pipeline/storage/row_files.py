"""Row files: a folder of Parquet files, one for each batch that annotate has finished.

In: tables with a `text_id` column. Out: the same rows, each text once. A file gets its name when it is
complete, and a Parquet file ends with its index. So the rows on disk are the only record of finished
work, and no second record can contradict them (docs/decisions/0004). Of the other columns this module
knows only their types, and that earlier versions named two fields of `work` differently. Only files with
names that annotate gives are removed or rewritten.
"""

from __future__ import annotations

import hashlib
import logging
import re
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.base.records import ANNOTATION_SCHEMA
from pipeline.storage.kinds import OWN_ROW_FILE, PARTIAL_ROW_FILE
from pipeline.storage.parquet import write_parquet
from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.files import PART

logger = logging.getLogger(__name__)

_READERS = 8
_BATCH_ROWS = 1_024
_REQUIRED = frozenset({"text_id", "text", "status", "calls"})  # columns without nulls
_ADDED = frozenset({"p_name"})  # fields that rows of earlier versions lack
_WORK = ANNOTATION_SCHEMA.field("work")
ROWS = "rows"

Ids = NDArray[np.int64]


class RowFileError(ConfigurationError):
    """A row file cannot be read, or may not be removed or rewritten because it is not annotate's."""


def write_rows(folder: Path, rows: pa.Table) -> None:
    """Write a batch as one file, synced to disk. Its name is a digest of the ids, so a repeated batch
    replaces its own file."""
    ids = rows["text_id"].to_numpy()
    path = folder / f"{hashlib.blake2b(ids.tobytes(), digest_size=12).hexdigest()}.parquet"
    # Two processes can write the same batch: an actor that Ray has given up may still run.
    write_parquet(path, rows, folder / f"{path.name}.{uuid.uuid4().hex}{PART}")


def parquet_files(folder: Path) -> list[Path]:
    """The complete Parquet files of the folder, sorted by name."""
    return sorted(folder.glob("*.parquet"))


def count_in_footers(folder: Path) -> int:
    """Number of rows of an annotation folder or of C*, from the Parquet footers.

    Raises RowFileError, naming the file, if a footer cannot be read.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        return sum(pool.map(_rows_in_footer, parquet_files(folder / ROWS)))


def _rows_in_footer(path: Path) -> int:
    with _reading(path):
        return int(pq.read_metadata(path).num_rows)


def recover_rows(folder: Path) -> Ids:
    """Remove incomplete files and duplicate rows; return the ids of all rows, sorted.

    A file without an index was being written when its writer died; its texts are annotated again. An
    id can be in two files if tasks of a killed run were still alive when the next run started. Rows
    with equal ids are equal, so any of them may stay. Nothing may write meanwhile. Raises RowFileError
    for a file that annotate did not write and that cannot be read or holds duplicates.
    """
    for part in folder.glob(f"*{PART}"):
        if re.fullmatch(PARTIAL_ROW_FILE, part.name) and part.is_file():
            part.unlink()
    files = parquet_files(folder)
    with ThreadPoolExecutor(_READERS) as pool:
        ids_by_file = list(pool.map(_read_ids_or_remove, files))
    ids = np.concatenate([np.empty(0, np.int64), *ids_by_file])
    ids.sort()  # in place: there may be 10^9 ids
    if not (ids[1:] == ids[:-1]).any():
        return ids
    _remove_duplicates(files, ids_by_file)
    return np.unique(ids)


def remove_failed(folder: Path) -> int:
    """Remove the rows of failed texts and return their number. Nothing may write meanwhile."""
    number_removed = 0
    for path in parquet_files(folder):
        with _reading(path):
            failed = pc.equal(pq.read_table(path, columns=["status"])["status"], "failed")
        if number := pc.sum(failed).as_py():
            _rewrite(path, pc.invert(failed))
            number_removed += number
    return number_removed


def _rewrite(path: Path, mask: pa.Array) -> None:
    """Keep the rows where the mask is true; remove the file if none is left."""
    _require_own_name(path, "rows of it would have to be removed")
    kept = pq.read_table(path).filter(mask)
    if not kept.num_rows:
        path.unlink()
        return
    part = path.with_name(path.name + PART)
    pq.write_table(kept, part)
    part.replace(path)


def _read_ids_or_remove(path: Path) -> Ids:
    with _reading(path):
        try:
            with pq.ParquetFile(path) as file:
                ids = file.read(columns=["text_id"])  # without an error where there is no such column
        except (pa.ArrowInvalid, EOFError, OSError) as error:
            if (
                getattr(error, "errno", None) or not path.is_file()
            ):  # the system's: nothing says it is damaged
                raise
            _require_own_name(path, f"it cannot be read ({brief(error)})")
            logger.warning(
                "%s was not written to its end: removed, its texts will be redone (%s)", path, brief(error)
            )
            path.unlink()
            return np.empty(0, np.int64)
        return np.asarray(_checked(ids, ["text_id"])["text_id"].to_numpy(), np.int64)


def _require_own_name(path: Path, reason: str) -> None:
    if not re.fullmatch(OWN_ROW_FILE, path.name):
        raise RowFileError(
            f"{path}: annotate did not write this file, and {reason}; move it to another folder"
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what Arrow raises into a RowFileError that names `path`."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, ValueError, KeyError) as error:
        raise RowFileError(
            f"{path}: cannot be read as rows: {brief(error)}; if it is damaged, remove it and give the "
            "command that wrote it again"
        ) from error


def _remove_duplicates(files: Sequence[Path], ids_by_file: Sequence[Ids]) -> None:
    ids = np.concatenate(ids_by_file)
    is_duplicate = np.ones(len(ids), bool)
    _, first_rows = np.unique(ids, return_index=True)
    is_duplicate[first_rows] = False
    file_ends = np.cumsum([len(ids) for ids in ids_by_file])
    for path, duplicates in zip(files, np.split(is_duplicate, file_ends[:-1]), strict=True):
        if duplicates.any():
            logger.warning("%s: %d duplicate rows removed", path, duplicates.sum())
            _rewrite(path, pa.array(~duplicates))


def read_file_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of one file, streamed. RowFileError if the file is damaged or lacks a column."""
    with _reading(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns)):
            yield _checked(_with_current_names(batch), columns)


B = TypeVar("B", pa.RecordBatch, pa.Table)


def _checked(rows: B, columns: Sequence[str]) -> B:
    """`columns` of `rows`. KeyError for a missing column, ValueError for a type, null or text at fault."""
    rows = rows.select(columns)
    rows.validate(full=True)  # UTF-8 and offsets
    for name in columns:
        if name not in ANNOTATION_SCHEMA.names:
            continue
        expected = ANNOTATION_SCHEMA.field(name)
        if not _fits(given := rows.schema.field(name).type, expected.type):
            raise ValueError(f"column {name} is {given}")
        if name in _REQUIRED and rows[name].null_count:
            raise ValueError(f"{rows[name].null_count} rows have no {name}")
    return rows


def _fits(given: pa.DataType, expected: pa.DataType) -> bool:
    """Whether values of type `given` can stand for `expected`: another size of a type, more fields, or
    without those added later."""
    types = pa.types
    if given == expected or types.is_null(given):
        return True
    if types.is_struct(expected):
        return types.is_struct(given) and all(
            (at := given.get_field_index(field.name)) >= 0 and _fits(given.field(at).type, field.type)
            for field in expected
            if field.name not in _ADDED or given.get_field_index(field.name) >= 0
        )
    if types.is_list(expected):
        if types.is_map(given) and types.is_struct(expected.value_type):  # of an earlier version
            return _fits(given.item_type, expected.value_type.field(1).type)
        is_list = types.is_list(given) or types.is_large_list(given)
        return is_list and _fits(given.value_type, expected.value_type)
    if types.is_string(expected) and types.is_large_string(given):
        return True
    kinds = (types.is_integer, types.is_floating)
    return any(is_kind(given) and is_kind(expected) for is_kind in kinds)


def _with_current_names(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Earlier versions wrote work.least and seen, now work.lower_bound and attention_pairs."""
    index = batch.schema.get_field_index(_WORK.name)
    if index < 0 or batch.schema.field(index).type == _WORK.type:
        return batch
    return batch.set_column(index, _WORK, batch.column(index).view(_WORK.type))


def read_batches(folder: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of an annotation folder, streamed file by file, sorted by file name.

    A pyarrow dataset of all files would keep 100 kB or more per file, and there are many files.
    """
    for path in parquet_files(folder / ROWS):
        yield from read_file_batches(path, columns)


def read_failed(folder: Path) -> Iterator[tuple[int, str]]:
    """Id and reason of each failed text."""
    for batch in read_batches(folder, ["text_id", "status", "reason"]):
        failed = batch.filter(pc.equal(batch["status"], "failed"))
        yield from zip(failed["text_id"].to_pylist(), failed["reason"].to_pylist(), strict=True)


def read_rows(folder: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Like `read_batches`, but as dictionaries."""
    for batch in read_batches(folder, columns):
        yield from batch.to_pylist()
