"""Reads the rows of a Parquet file within bounded memory, value by value.

In: a `CorpusFile` and the fields wanted. Out: for each row, its number and a dict of the columns that hold
such fields; for rows that cannot be read, one `LostRows`. A value that Python cannot represent (a date
of the year -200) is None, and so costs itself only. A damaged row group costs its rows from the damage
on, and the next one is read. documents.py decides what the values mean.

Memory: a batch of rows is bounded in bytes, by the sizes that the file declares for its row groups and
by the encodings, of which some repeat a long value at no cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.files import CorpusFile
from tools_service.base.lines import GIT_LFS_ADVICE, GIT_LFS_POINTER

_BATCH_ROWS = 256
_BATCH_BYTES = 64 * 2**20
_BUFFER_BYTES = 8 * 2**20  # of a column that is read; without it, a column of a row group is read whole
# Above _BATCH_BYTES, more bytes per compressed byte than text can have: pages made to fill the memory.
_MAX_COMPRESSION = 200
_MAX_NESTED_VALUES = 16 * 2**20  # in a map or list of a row group; in few bytes it can have 2**31
_MAX_VALUE_BYTES = 256 * 2**20  # longer than every document that may be read
# Encodings in which a value takes its own bytes. Dictionaries and shared prefixes expand.
_PLAIN_ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED", "DELTA_LENGTH_BYTE_ARRAY"}


@dataclass(frozen=True, slots=True)
class LostRows:
    """Rows that cannot be read, up to row `last` (None: the last of the file), with the reason."""

    reason: str
    last: int | None

    def __str__(self) -> str:
        last = "the end" if self.last is None else f"row {self.last}"
        return f"{self.reason}; nothing from this row to {last} can be read"


@dataclass(frozen=True, slots=True)
class NotText:
    """A value that should be a string and is none, with the reason (``KIND: details``)."""

    problem: str


Row = tuple[int, dict[str, Any] | LostRows, list[str]]


def read_rows(file: CorpusFile, text_fields: Sequence[str], other_fields: Sequence[str]) -> Iterator[Row]:
    """Yield (row, values, names of all columns); rows count from 1.

    Raises OSError for a broken disk or connection, and MemoryError: neither is the file's fault.
    """
    try:
        source = file.open_random()
        with source, pq.ParquetFile(source, buffer_size=_BUFFER_BYTES) as parquet:
            yield from _read_groups(file, parquet, text_fields, other_fields)
    except Exception as error:
        _raise_if_not_damage(file, error)
        yield 1, LostRows(f"damaged file: {_what_it_is(file) or error}", None), []


def _what_it_is(file: CorpusFile) -> str:
    """What a file that is not Parquet is, if it is a pointer of Git LFS."""
    with file.open_random() as source:
        is_pointer = source.read(len(GIT_LFS_POINTER)) == GIT_LFS_POINTER
    return GIT_LFS_ADVICE if is_pointer else ""


def _read_groups(
    file: CorpusFile, parquet: pq.ParquetFile, text_fields: Sequence[str], other_fields: Sequence[str]
) -> Iterator[Row]:
    names = [str(name) for name in parquet.schema_arrow.names]
    row = 0
    for number in range(parquet.num_row_groups):
        last = row + max(0, parquet.metadata.row_group(number).num_rows)
        try:
            columns, batch_rows = _columns_to_read(parquet, number, text_fields, other_fields)
            for batch in parquet.iter_batches(batch_rows, row_groups=[number], columns=columns):
                for index in range(min(batch.num_rows, last - row)):
                    row += 1
                    yield row, _values(batch, index), names
            lost = LostRows("damaged file: there are fewer rows than the file says", last)
        except _TooLargeError as error:
            lost = LostRows(f"too large: {error}", last)
        except Exception as error:
            _raise_if_not_damage(file, error)
            lost = LostRows(f"damaged file: {error}", last)
        if row < last:
            yield row + 1, lost, names
        row = last


class _TooLargeError(Exception):
    """The text of a row group would take too much memory."""


def _columns_to_read(
    parquet: pq.ParquetFile, group_number: int, text_fields: Sequence[str], other_fields: Sequence[str]
) -> tuple[list[str], int]:
    """The leaf columns to read of a row group, and the rows of a batch.

    A column that would fill the memory is left out; _TooLargeError if it may hold the text.
    """
    group = parquet.metadata.row_group(group_number)
    columns: list[str] = []
    total_bytes, is_plain = 0, True
    for index in range(group.num_columns):
        leaf, chunk = parquet.schema.column(index), group.column(index)
        path = leaf.path.partition(".key_value.")[0]  # of a map, whose keys are values
        is_text = _overlaps(path, text_fields)
        if not is_text and not _overlaps(path, other_fields):
            continue
        size = chunk.total_uncompressed_size
        compressed = max(1, chunk.total_compressed_size)
        if size > _BATCH_BYTES and size > _MAX_COMPRESSION * compressed:
            problem = f"column {leaf.path} takes {size:,} bytes, {compressed:,} compressed"
        elif leaf.max_repetition_level and chunk.num_values > _MAX_NESTED_VALUES:
            problem = f"column {leaf.path} has {chunk.num_values:,} values in {group.num_rows:,} rows"
        else:
            columns.append(leaf.path)
            total_bytes += size
            is_plain = is_plain and _PLAIN_ENCODINGS.issuperset(chunk.encodings)
            continue
        if is_text:
            raise _TooLargeError(problem)
    if is_plain and total_bytes <= _BATCH_BYTES:
        return columns, _BATCH_ROWS
    return columns, min(max(1, _BATCH_BYTES // max(1, total_bytes)), _BATCH_ROWS)


def _overlaps(path: str, fields: Iterable[str]) -> bool:
    """Whether a column is, holds or belongs to one of the fields."""
    return any(
        path == field or field.startswith(f"{path}.") or path.startswith(f"{field}.") for field in fields
    )


def _values(batch: pa.RecordBatch, index: int) -> dict[str, Any]:
    return {name: _to_python(batch.column(column)[index]) for column, name in enumerate(batch.schema.names)}


def _to_python(scalar: Any) -> Any:
    """A string, a dict, a date or another value; `NotText` for bytes that are no string.

    None for null, and for a value that Python cannot represent. Lists are not needed: they are empty.
    """
    if isinstance(scalar, pa.ExtensionScalar | pa.DictionaryScalar):
        return _to_python(scalar.value)
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.MapScalar):
        return {str(_to_python(entry[0])): _to_python(entry[1]) for entry in scalar.values}
    if isinstance(scalar, pa.StructScalar):
        return {scalar.type.field(i).name: _to_python(scalar[i]) for i in range(scalar.type.num_fields)}
    if isinstance(scalar, pa.ListScalar):
        return []
    if isinstance(scalar, pa.BinaryScalar):
        return _to_text(scalar)
    try:
        return scalar.as_py()
    except MemoryError:
        raise
    except Exception:  # dates out of range, unknown time zones, nanoseconds: one optional value
        return None


def _to_text(scalar: pa.BinaryScalar) -> str | NotText:
    data = scalar.as_buffer()
    if data.size > _MAX_VALUE_BYTES:
        return NotText(f"document too long: {data.size:,} bytes, at most {_MAX_VALUE_BYTES:,} are read")
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        return NotText(f"not UTF-8: {error.reason} at byte {error.start} of a column")


def _raise_if_not_damage(file: CorpusFile, error: Exception) -> None:
    """Raise an error that is not the file's fault again.

    A broken page looks like a broken connection, except that an error of the system has a number. A
    local file stays broken, but a connection may recover, so its error must not become a row.
    """
    is_system_error = isinstance(error, OSError) and error.errno is not None
    if isinstance(error, MemoryError) or is_system_error:
        raise error
    may_be_connection = isinstance(error, pa.ArrowException | OSError)
    if file.root and may_be_connection and not isinstance(error, pa.ArrowInvalid):
        raise OSError(str(error)) from error
