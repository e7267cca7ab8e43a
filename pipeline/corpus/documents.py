"""Reads the documents of one corpus file: CCNet, Dolma and plain JSON lines, Parquet, text files.

In: a `CorpusFile`. Out: one `Record` per line or row, in order, streamed: the text and its origin, or the
reason why the text is unusable (``KIND: details at FILE#N``). A bad line costs that line only; it is never
an exception. docs/corpus.md describes the recognised fields. passages.py splits documents. No Ray.
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
# Not date_download, created or timestamp: in CCNet, Dolma and C4 these are the time of the crawl.
DATE_FIELDS = ("date", "date_published", "metadata.date", "metadata.date_published")

_CHUNK_BYTES = 64 * 2**10
_BLOCK_CHARACTERS = 64 * 2**10
_BATCH_ROWS = 256
_SHOWN_FIELDS = 20


@dataclass(frozen=True, slots=True)
class Record:
    """A line or row of a corpus file, numbered from 1. With a `problem`, its text is unusable."""

    row: int
    document: Document
    text: str = ""
    problem: str | None = None


def read_records(file: CorpusFile, config: CorpusConfig) -> Iterator[Record]:
    """Every document of a corpus file. CorpusError if the file cannot be opened or read on."""
    readers = {"jsonl": _read_jsonl, "text": _read_text, "parquet": _read_parquet}
    empty = True
    try:
        for record in readers[file.format](file, config):
            empty = False
            yield record
    except OSError as error:
        raise CorpusError(f"{file.name}: cannot be read: {error}") from error
    if empty:
        yield _broken(file, 1, "empty file: no document")


def _read_jsonl(file: CorpusFile, config: CorpusConfig) -> Iterator[Record]:
    for line in _lines(file):
        if line.problem:
            yield _broken(file, line.number, line.problem)
        elif line.text and not line.text.isspace():
            yield _parse_line(file, line, config)


def _parse_line(file: CorpusFile, line: Line, config: CorpusConfig) -> Record:
    try:
        fields = json.loads(line.text)
    except json.JSONDecodeError as error:
        return _broken(file, line.number, f"not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 100,000 brackets
        return _broken(file, line.number, f"not JSON: {error}")
    if not isinstance(fields, dict):
        return _broken(file, line.number, f"not an object: the line is a JSON {_json_type(fields)}")
    return _record(file, line.number, fields, list(fields), config)


def _read_text(file: CorpusFile, config: CorpusConfig) -> Iterator[Record]:
    """Reads a text file as one document, in blocks so that a large file streams.

    A block ends at a blank line, or at a line break if no blank line follows for long. An unusable
    line is a record of its own.
    """
    block: list[str] = []
    first, size = 1, 0

    def record() -> Record:
        return Record(first, Document(f"{file.name}#{first}"), "\n".join(block))

    for line in _lines(file):
        problem = line.problem or _unusable(line.text, config)
        full = size >= 2 * _BLOCK_CHARACTERS or (size >= _BLOCK_CHARACTERS and not line.text.strip())
        if block and (problem or full):
            yield record()
            block, size = [], 0
        if problem:
            yield _broken(file, line.number, problem)
        elif block or line.text.strip():
            first = first if block else line.number
            block.append(line.text)
            size += len(line.text) + 1
    if block:
        yield record()


def _read_parquet(file: CorpusFile, config: CorpusConfig) -> Iterator[Record]:
    row = 0
    try:
        with file.open_random() as source, pq.ParquetFile(source) as parquet:
            names = parquet.schema_arrow.names
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, columns=_columns(names, config)):
                for fields in _rows(batch):
                    row += 1
                    if isinstance(fields, str):
                        yield _broken(file, row, fields)
                    else:
                        yield _record(file, row, fields, names, config)
    except (pa.ArrowException, OSError) as error:
        # A broken page looks like a broken connection. A local file stays broken, but a connection may
        # recover, so its error must not become a row.
        if file.root and not isinstance(error, pa.ArrowInvalid):
            raise OSError(str(error)) from error
        yield _broken(file, row + 1, f"damaged file: {error}; nothing after row {row} can be read")


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch; a problem instead of each row whose strings are not UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            yield f"not UTF-8: {error.reason} at byte {error.start} of a column"
            return
        for index in range(batch.num_rows):
            yield from _rows(batch.slice(index, 1))


def _columns(names: list[str], config: CorpusConfig) -> list[str]:
    """The columns of a Parquet file that are, or contain, a field that may be read."""
    configured = [config.text_field, config.url_field, config.title_field, config.date_field]
    fields = [*filter(None, configured), *TEXT_FIELDS, *URL_FIELDS, *TITLE_FIELDS, *DATE_FIELDS]
    columns = {*fields, *(field.partition(".")[0] for field in fields)}
    return [name for name in names if name in columns]


def _record(
    file: CorpusFile, row: int, fields: Mapping[str, Any], names: list[str], config: CorpusConfig
) -> Record:
    document = Document(
        source=f"{file.name}#{row}",
        url=_url(fields, config),
        title=_metadata(_find(fields, config.title_field, TITLE_FIELDS)),
        date=_date(_find(fields, config.date_field, DATE_FIELDS)),
    )
    text = _find(fields, config.text_field, TEXT_FIELDS)
    if text is None:
        looked_for = config.text_field or ", ".join(TEXT_FIELDS)
        present = ", ".join(names[:_SHOWN_FIELDS]) or "no fields"
        more = f" and {len(names) - _SHOWN_FIELDS} more" if len(names) > _SHOWN_FIELDS else ""
        problem = f"no text field: looked for {looked_for}, the record has {present}{more}"
    elif not isinstance(text, str):
        problem = f"text is not a string: it is a JSON {_json_type(text)}"
    else:
        problem = _unusable(text, config) or ("empty document: no text" if not text.strip() else "")
    if problem:
        return Record(row, document, problem=f"{problem} at {document.source}")
    return Record(row, document, text)


def _broken(file: CorpusFile, row: int, problem: str) -> Record:
    source = f"{file.name}#{row}"
    return Record(row, Document(source), problem=f"{problem} at {source}")


def _unusable(text: str, config: CorpusConfig) -> str | None:
    """Why a text is unusable: it is too long, or has characters that break tokenizers or Arrow."""
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


def _find(fields: Mapping[str, Any], configured: str | None, recognised: tuple[str, ...]) -> Any:
    """The value of the configured field, else of the first recognised field that has a value."""
    names = (configured,) if configured else recognised
    values = (_lookup(fields, name) for name in names)
    return next((value for value in values if value is not None), None)


def _lookup(fields: Mapping[str, Any], name: str) -> Any:
    """A field by its name, or by its path with dots; None if it is missing."""
    if name in fields:
        return fields[name]
    head, dot, tail = name.partition(".")
    inner = fields.get(head)
    return _lookup(inner, tail) if dot and isinstance(inner, Mapping) else None


def _url(fields: Mapping[str, Any], config: CorpusConfig) -> str | None:
    """The configured field, else the first recognised field that holds a URL."""
    if config.url_field:
        return _metadata(_lookup(fields, config.url_field))
    values = (_metadata(_lookup(fields, name)) for name in URL_FIELDS)
    return next((value for value in values if value and value.startswith(("http://", "https://"))), None)


def _metadata(value: Any) -> str | None:
    """A string without characters that cannot be written, or None."""
    if not isinstance(value, str):
        return None
    return value.encode("utf-8", "replace").decode().replace("\0", "?").strip() or None


def _date(value: Any) -> str | None:
    """The day (ISO YYYY-MM-DD) of a date, a time, or a string that starts with a date."""
    if isinstance(value, datetime.date):  # includes datetime
        return value.strftime("%Y-%m-%d")
    try:
        return datetime.date.fromisoformat(value[:10]).isoformat() if isinstance(value, str) else None
    except ValueError:
        return None


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "array", bool: "boolean", int: "number", float: "number", str: "string"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


def _lines(file: CorpusFile) -> Iterator[Line]:
    with file.open_stream() as stream:
        yield from read_lines(iter(lambda: stream.read(_CHUNK_BYTES), b""), file.compression)
