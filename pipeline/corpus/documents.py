"""The documents of one shard: CCNet, Dolma and plain JSON lines, Parquet, text files.

In: a `CorpusFile`. Out: one `Record` per line or row, in order, streamed: the text and where it comes from, or the
reason why there is no usable text (``KIND: details at FILE#N``), never an exception, so that one bad line
costs one line. Which fields are recognised stands below; docs/corpus.md says it in prose. Cuts nothing into
passages (passages.py does that). No Ray.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.config import CorpusConfig
from pipeline.base.records import Document
from pipeline.corpus.files import CorpusError, CorpusFile
from tools_service.base.lines import Line, read_lines

TEXT_FIELDS = ("raw_content", "text", "content")
URL_FIELDS = ("url", "metadata.url", "source_url", "metadata.source_url", "id")
TITLE_FIELDS = ("title", "metadata.title")
# Not date_download, created or timestamp: in CCNet, Dolma and C4 they say when a page was fetched.
DATE_FIELDS = ("date", "date_published", "metadata.date", "metadata.date_published")

_CHUNK_BYTES = 64 * 2**10
_BLOCK_CHARACTERS = 64 * 2**10
_BATCH_ROWS = 256
_SHOWN_FIELDS = 20


@dataclass(frozen=True, slots=True)
class Record:
    """One line or row of a shard, numbered from 1. With a `problem` there is no text to use."""

    row: int
    document: Document
    text: str = ""
    problem: str | None = None


def read_records(shard: CorpusFile, config: CorpusConfig) -> Iterator[Record]:
    """Every document of a shard. CorpusError if the file cannot be opened or the connection to it breaks."""
    readers = {"jsonl": _read_jsonl, "text": _read_text, "parquet": _read_parquet}
    empty = True
    try:
        for record in readers[shard.format](shard, config):
            empty = False
            yield record
    except OSError as error:
        raise CorpusError(f"{shard.name}: cannot be read: {error}") from error
    if empty:
        yield _broken(shard, 1, "empty file: no document")


def _read_jsonl(shard: CorpusFile, config: CorpusConfig) -> Iterator[Record]:
    for line in _lines(shard):
        if line.problem:
            yield _broken(shard, line.number, line.problem)
        elif line.text and not line.text.isspace():
            yield _parse_line(shard, line, config)


def _parse_line(shard: CorpusFile, line: Line, config: CorpusConfig) -> Record:
    try:
        fields = json.loads(line.text)
    except json.JSONDecodeError as error:
        return _broken(shard, line.number, f"not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 100,000 brackets
        return _broken(shard, line.number, f"not JSON: {error}")
    if not isinstance(fields, dict):
        return _broken(shard, line.number, f"not an object: the line is a JSON {_kind(fields)}")
    return _record(shard, line.number, fields, list(fields), config)


def _read_text(shard: CorpusFile, config: CorpusConfig) -> Iterator[Record]:
    """A text file is one document, read in blocks so that a large one streams; a block ends at a blank line.

    Where there is no blank line for long, it ends at a line break. A line that cannot be used is a record.
    """
    block: list[str] = []
    first, size = 1, 0
    for line in _lines(shard):
        problem = line.problem or _unusable(line.text, config)
        full = size >= 2 * _BLOCK_CHARACTERS or (size >= _BLOCK_CHARACTERS and not line.text.strip())
        if block and (problem or full):
            yield _text_record(shard, first, block)
            block, size = [], 0
        if problem:
            yield _broken(shard, line.number, problem)
        elif block or line.text.strip():
            first = first if block else line.number
            block.append(line.text)
            size += len(line.text) + 1
    if block:
        yield _text_record(shard, first, block)


def _text_record(shard: CorpusFile, first: int, block: list[str]) -> Record:
    return Record(first, Document(f"{shard.name}#{first}"), "\n".join(block))


def _read_parquet(shard: CorpusFile, config: CorpusConfig) -> Iterator[Record]:
    row = 0
    try:
        with shard.open_random() as source, pq.ParquetFile(source) as file:
            names = file.schema_arrow.names
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=_columns(names, config)):
                for fields in _rows(batch):
                    row += 1
                    if isinstance(fields, str):
                        yield _broken(shard, row, fields)
                    else:
                        yield _record(shard, row, fields, names, config)
    except (pa.ArrowException, OSError) as error:
        # A broken page looks like a broken connection: on disk it stays broken, a connection may recover.
        if shard.root and not isinstance(error, pa.ArrowInvalid):
            raise OSError(str(error)) from error
        yield _broken(shard, row + 1, f"damaged file: {error}; nothing after row {row} can be read")


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch, or the problem of one: Parquet lets strings pass that are no UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            yield f"not UTF-8: {error.reason} at byte {error.start} of a column"
            return
        for index in range(batch.num_rows):
            yield from _rows(batch.slice(index, 1))


def _columns(names: list[str], config: CorpusConfig) -> list[str]:
    """Of a Parquet file's columns those that a field to look for is, or is inside of."""
    named = [config.text_field, config.url_field, config.title_field, config.date_field]
    fields = [name for name in named if name] + [*TEXT_FIELDS, *URL_FIELDS, *TITLE_FIELDS, *DATE_FIELDS]
    wanted = {part for field in fields for part in (field, field.partition(".")[0])}
    return [name for name in names if name in wanted]


def _record(
    shard: CorpusFile, row: int, fields: Mapping[str, Any], names: list[str], config: CorpusConfig
) -> Record:
    document = Document(
        source=f"{shard.name}#{row}",
        url=_url(fields, config),
        title=_metadata(_find(fields, config.title_field, TITLE_FIELDS)),
        date=_date(_find(fields, config.date_field, DATE_FIELDS)),
    )
    text = _find(fields, config.text_field, TEXT_FIELDS)
    if text is None:
        looked_for = config.text_field or ", ".join(TEXT_FIELDS)
        problem = f"no text field: looked for {looked_for}, the record has {_listed(names)}"
    elif not isinstance(text, str):
        problem = f"text is not a string: it is a JSON {_kind(text)}"
    else:
        problem = _unusable(text, config) or ("empty document: no text" if not text.strip() else "")
    if problem:
        return Record(row, document, problem=f"{problem} at {document.source}")
    return Record(row, document, text)


def _broken(shard: CorpusFile, row: int, problem: str) -> Record:
    source = f"{shard.name}#{row}"
    return Record(row, Document(source), problem=f"{problem} at {source}")


def _unusable(text: str, config: CorpusConfig) -> str | None:
    """Why a text cannot travel on at all; such characters break tokenizers, Arrow or the output."""
    limit = config.max_document_characters
    if len(text) > limit:
        return f"document too long: {len(text):,} characters, max_document_characters is {limit:,}"
    if (at := text.find("\0")) >= 0:
        return f"NUL character: at character {at}, the page is binary or wrongly decoded"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"not Unicode: half of a surrogate pair at character {error.start}"
    return None


def _find(fields: Mapping[str, Any], named: str | None, recognised: tuple[str, ...]) -> Any:
    """The value of the field the user named, else of the first recognised one that has a value."""
    values = (_lookup(fields, name) for name in ((named,) if named else recognised))
    return next((value for value in values if value is not None), None)


def _lookup(fields: Mapping[str, Any], name: str) -> Any:
    """A field by its name, or by its path with dots."""
    if name in fields:
        return fields[name]
    head, dot, tail = name.partition(".")
    inner = fields.get(head)
    return _lookup(inner, tail) if dot and isinstance(inner, Mapping) else None


def _url(fields: Mapping[str, Any], config: CorpusConfig) -> str | None:
    """The URL; of the recognised fields only one that looks like it (some of Dolma's `id`s do)."""
    if config.url_field:
        return _metadata(_lookup(fields, config.url_field))
    values = (_metadata(_lookup(fields, name)) for name in URL_FIELDS)
    return next((value for value in values if value and value.startswith(("http://", "https://"))), None)


def _metadata(value: Any) -> str | None:
    """A string that can be written anywhere, or None."""
    if not isinstance(value, str):
        return None
    return value.encode("utf-8", "replace").decode().replace("\0", "?").strip() or None


def _date(value: Any) -> str | None:
    """The day, ISO YYYY-MM-DD, of a date, a time or a string that begins with one."""
    if isinstance(value, datetime.date):  # a datetime is one too
        return value.strftime("%Y-%m-%d")
    try:
        return datetime.date.fromisoformat(value[:10]).isoformat() if isinstance(value, str) else None
    except ValueError:
        return None


def _kind(value: Any) -> str:
    names = {dict: "object", list: "array", bool: "boolean", int: "number", float: "number", str: "string"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN_FIELDS]) or "no fields"
    return f"{shown} and {len(names) - _SHOWN_FIELDS} more" if len(names) > _SHOWN_FIELDS else shown


def _lines(shard: CorpusFile) -> Iterator[Line]:
    with shard.open_stream() as stream:
        yield from read_lines(iter(lambda: stream.read(_CHUNK_BYTES), b""), shard.compression)
