"""Reads the documents of one corpus file: CCNet, Dolma and plain JSON lines, Parquet, text files.

In: a `CorpusFile`. Out: one `Record` per line or row, in order, streamed: the text and its origin, or the
reason why the text is unusable (``KIND: details at FILE#N``). A bad line costs that line only, and a bad
URL, title or date costs itself only. docs/corpus.md describes the recognised fields, and parquet_rows.py
reads Parquet. passages.py splits documents. No Ray.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from typing import Any

from pipeline.base.config import CorpusConfig
from pipeline.base.records import Document
from pipeline.corpus.files import CorpusError, CorpusFile
from pipeline.corpus.parquet_rows import LostRows, NotText, read_rows
from tools_service.base.json_lines import WANTED, begins_long_value, parse_json
from tools_service.base.lines import Line, read_lines
from tools_service.base.printable import printable

TEXT_FIELDS = ("raw_content", "text", "content")
URL_FIELDS = (
    *("url", "metadata.url", "source_url", "metadata.source_url", "id"),
    *("meta.url", "meta.source_url"),  # RedPajama
    "warc_headers.warc-target-uri",  # OSCAR, also within metadata or meta
    "metadata.warc_headers.warc-target-uri",
    "meta.warc_headers.warc-target-uri",
)
TITLE_FIELDS = ("title", "metadata.title", "meta.title")
# Not date_download, created, timestamp or warc-date: in CCNet, Dolma, C4 and OSCAR these are the
# time of the crawl.
DATE_FIELDS = (
    *("date", "date_published", "metadata.date", "metadata.date_published"),
    *("meta.date", "meta.date_published"),
)

# The form is checked, because fromisoformat reads the ten digits of a time in seconds as a date of
# the Middle Ages. Eight digits may have a time behind them.
_BEGINS_WITH_DATE = re.compile(r"(?:\d{4}-?W\d\d-?\d|\d{4}-\d\d-\d\d|\d{8})(?:\d{6})?(?!\d)", re.ASCII)
_CHUNK_BYTES = 64 * 2**10
_BLOCK_CHARACTERS = 64 * 2**10
_SHOWN_FIELDS = 20
_MAX_SHOWN_NAME = 60
_MAX_METADATA_CHARACTERS = 4_096  # of a URL or title
_MAX_REASON_CHARACTERS = 2_000
_MAX_NESTED_JSON = 2**20  # characters of an object that is a JSON string inside a field


@dataclass(frozen=True, slots=True)
class Record:
    """A line or row of a corpus file, numbered from 1. With a `problem`, its text is unusable."""

    row: int
    document: Document
    text: str = ""
    problem: str | None = None


def read_records(file: CorpusFile, config: CorpusConfig) -> Iterator[Record]:
    """Every document of a corpus file.

    CorpusError, with the file and the row, if the file cannot be opened or read on. That is not the
    fault of the file: a broken disk or connection, or too little memory.
    """
    readers = {"jsonl": _read_jsonl, "text": _read_text, "parquet": _read_parquet}
    row = 0
    try:
        for record in readers[file.format](file, config):
            row = record.row
            yield record
    except CorpusError:
        raise
    except Exception as error:
        cause = "not enough memory" if isinstance(error, MemoryError) else type(error).__name__
        cause = f"{cause}: " if not isinstance(error, OSError) else ""
        raise CorpusError(
            f"{file.label}: cannot be read after row {row}: {cause}"
            f"{printable(str(error), _MAX_REASON_CHARACTERS)}"
        ) from error
    if row == 0:
        yield _broken(file, 1, "empty file: no document")


def _read_jsonl(file: CorpusFile, config: CorpusConfig) -> Iterator[Record]:
    lines = lines_with_content(file)
    first_lines = list(islice(lines, 2))
    if len(first_lines) > 1 and begins_long_value(*(line.text for line in first_lines)):
        problem = f"not JSON lines: a value goes over several lines; {WANTED}"
        yield _broken(file, first_lines[0].number, problem)
        return
    for line in chain(first_lines, lines):
        yield _parse_line(file, line, config)


def lines_with_content(file: CorpusFile) -> Iterator[Line]:
    """The lines of a file that are not blank, and those that cannot be read."""
    return (line for line in _lines(file) if line.problem or (line.text and not line.text.isspace()))


def _parse_line(file: CorpusFile, line: Line, config: CorpusConfig) -> Record:
    """A line that is not UTF-8 has a problem and a text: it counts if the document's text is sound."""
    if line.problem and not line.text:
        return _broken(file, line.number, line.problem)
    try:
        fields = parse_json(line.text)
    except ValueError as error:
        return _broken(file, line.number, line.problem or str(error))
    if not isinstance(fields, dict):
        hint = f"; {WANTED}" if isinstance(fields, list) and line.number == 1 else ""
        return _broken(file, line.number, f"not an object: the line is a JSON {_json_type(fields)}{hint}")
    record = _record(file, line.number, fields, list(fields), config)
    if line.problem and record.problem:
        return _broken(file, line.number, line.problem)
    return record


def _read_text(file: CorpusFile, config: CorpusConfig) -> Iterator[Record]:
    """Reads a text file as one document, in blocks so that a large file streams.

    A block ends at a blank line, or at a line break if no blank line follows for long. An unusable
    line is a record of its own.
    """
    block: list[str] = []
    first, size = 1, 0

    def record() -> Record:
        return Record(first, Document(f"{file.label}#{first}"), "\n".join(block))

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
    text_fields = (config.text_field,) if config.text_field else TEXT_FIELDS
    other_fields = [
        *((config.url_field,) if config.url_field else URL_FIELDS),
        *((config.title_field,) if config.title_field else TITLE_FIELDS),
        *((config.date_field,) if config.date_field else DATE_FIELDS),
    ]
    for row, fields, names in read_rows(file, text_fields, other_fields):
        if isinstance(fields, LostRows):
            yield _broken(file, row, str(fields))
        else:
            yield _record(file, row, fields, names, config)


def _record(
    file: CorpusFile, row: int, fields: Mapping[str, Any], names: list[str], config: CorpusConfig
) -> Record:
    document = Document(
        source=f"{file.label}#{row}",
        url=_url(fields, config),
        title=_metadata(_find(fields, config.title_field, TITLE_FIELDS)),
        date=_date(_find(fields, config.date_field, DATE_FIELDS)),
    )
    text = _find(fields, config.text_field, TEXT_FIELDS)
    if text is None:
        looked_for = config.text_field or ", ".join(TEXT_FIELDS)
        present = ", ".join(printable(name, _MAX_SHOWN_NAME) for name in names[:_SHOWN_FIELDS]) or "no fields"
        more = f" and {len(names) - _SHOWN_FIELDS} more" if len(names) > _SHOWN_FIELDS else ""
        problem = f"no text field: looked for {looked_for}, the record has {present}{more}"
    elif isinstance(text, NotText):
        problem = text.problem
    elif not isinstance(text, str):
        problem = f"text is not a string: it is a JSON {_json_type(text)}"
    else:
        problem = _unusable(text, config) or ("empty document: no text" if not text.strip() else "")
    if problem:
        return Record(row, document, problem=_reason(problem, document.source))
    return Record(row, document, text)


def _broken(file: CorpusFile, row: int, problem: str) -> Record:
    source = f"{file.label}#{row}"
    return Record(row, Document(source), problem=_reason(problem, source))


def _reason(problem: str, source: str) -> str:
    return f"{printable(problem, _MAX_REASON_CHARACTERS)} at {source}"


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
    """A field by its name, or by its path with dots; None if it is missing.

    An object may also be a JSON string (RedPajama's meta).
    """
    if name in fields:
        return fields[name]
    head, dot, tail = name.partition(".")
    inner = fields.get(head) if dot else None
    if isinstance(inner, str):
        inner = _parse_object(inner) if inner[:1] == "{" and len(inner) <= _MAX_NESTED_JSON else None
    return _lookup(inner, tail) if isinstance(inner, Mapping) else None


@lru_cache(maxsize=4)
def _parse_object(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None


def _url(fields: Mapping[str, Any], config: CorpusConfig) -> str | None:
    """The configured field, else the first recognised field that holds a URL."""
    if config.url_field:
        return _metadata(_lookup(fields, config.url_field))
    values = (_metadata(_lookup(fields, name)) for name in URL_FIELDS)
    return next(
        (value for value in values if value and value[:8].lower().startswith(("http://", "https://"))), None
    )


def _metadata(value: Any) -> str | None:
    """A string that can be written, or None."""
    if not isinstance(value, str):
        return None
    return printable(value.strip(), _MAX_METADATA_CHARACTERS) or None


def _date(value: Any) -> str | None:
    """The day (ISO YYYY-MM-DD) of a date, a time, or a string that starts with a date."""
    if isinstance(value, datetime.date):  # includes datetime; strftime gives year 1 as "1"
        return value.isoformat()[:10]
    try:
        begins = isinstance(value, str) and _BEGINS_WITH_DATE.match(value)
        return datetime.date.fromisoformat(value[:10]).isoformat() if begins else None
    except ValueError:
        return None


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "array", bool: "boolean", int: "number", float: "number", str: "string"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


def _lines(file: CorpusFile) -> Iterator[Line]:
    with file.open_stream() as stream:
        yield from read_lines(iter(lambda: stream.read(_CHUNK_BYTES), b""), file.compression)
