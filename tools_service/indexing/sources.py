"""What an index is built from: files of articles in, articles out, a block of lines at a time.

These formats are read, also compressed (gzip, zstandard, bzip2), and detected by content:

    KILT's knowledge source   jsonl: wikipedia_title; text, paragraphs with BULLET:::: and Section:::: marks
    DPR's passages            tsv: id, text, title, quoted as csv; every row is a passage already
    Dolma's documents         jsonl: text, id, metadata; the title comes from the URL or the first line
    plain jsonl               title, text

A line that gives no article is `Skipped` with file, line and reason. A file of another format is an
error before anything is read. At most one block of lines is held.
"""

from __future__ import annotations

import csv
import logging
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from tools_service.base.errors import ConfigurationError
from tools_service.base.folders import (
    NO_TARGET,
    NOT_REGULAR,
    Found,
    FoundFile,
    LeftOut,
    describe,
    find_below,
    unique,
)
from tools_service.base.json_lines import WANTED, begins_long_value, parse_json
from tools_service.base.lines import MAX_LINE_BYTES, Line, read_lines
from tools_service.base.printable import printable

logger = logging.getLogger(__name__)

SUFFIXES = tuple(
    kind + packed for kind in (".jsonl", ".json", ".tsv") for packed in ("", ".gz", ".zst", ".bz2")
)
MAX_TITLE_CHARACTERS = 1_000
_MAX_FIRST_LINE_CHARACTERS = 100  # of a title from the text; it is indexed with every passage

Format = Literal["jsonl", "tsv"]

_BLOCK_CHARACTERS = 96 * 2**20  # some 400 blocks in KILT's 37 GB
_BLOCK_LINES = 2**20  # each takes some 100 bytes besides its characters
_CHUNK_BYTES = 2**20
_LINES_TO_DETECT = 64
_TSV_COLUMNS = ["id", "text", "title"]
_HEADING = "Section::::"
_BULLET = re.compile(r"^BULLET::::[-*\s]*")

csv.field_size_limit(MAX_LINE_BYTES)  # the default is 128 KiB; the limit holds for the process


class SourceError(ConfigurationError):
    """The source cannot be used. The message names the file or folder and what to do."""


@dataclass(frozen=True, slots=True)
class Article:
    """A title and a text. An article that is a passage already is not split."""

    title: str
    text: str
    is_passage: bool = False


@dataclass(frozen=True, slots=True)
class Skipped:
    """A line that gave no article, from 1. The reason may have details after a colon."""

    file: str
    line: int
    reason: str

    @property
    def kind(self) -> str:
        """The reason without details, for counts."""
        return self.reason.partition(":")[0]


@dataclass(slots=True)
class Block:
    """Consecutive lines of one file with their numbers, and those that cannot be read."""

    file: str
    format: Format
    lines: list[tuple[int, str]] = field(default_factory=list)
    unreadable: list[Skipped] = field(default_factory=list)


def source_files(sources: Sequence[str]) -> list[Path]:
    """Return the files of all `sources` (files, folders, globs) in a fixed order, each once.

    Warns of what is left out of a folder. Raises SourceError for a source without a file.
    """
    files: list[Path] = []
    left_out: list[LeftOut] = []
    seen: set[tuple[int, int] | str] = set()
    for source in sources:
        found = _expand(source)
        kept, second = unique(found.files, seen)
        files += [Path(file.path) for file in kept]
        left_out += [*found.left_out, *second]
    for sentence in describe(left_out):
        logger.warning("tools.wikisearch.source: %s", sentence)
    return files


def _expand(source: str) -> Found:
    if not source.strip():
        raise SourceError(
            f"tools.wikisearch.source: {source!r} names nothing; is a variable of the shell unset?"
        )
    try:
        path = Path(source).expanduser()
        anchor = Path(path.anchor)
        paths = [path] if path.exists() else sorted(anchor.glob(str(path.relative_to(anchor))))
        found = Found()
        for each in paths:
            _add(each, found)
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
        message = f"tools.wikisearch.source: {printable(source)} cannot be opened: {error}"
        raise SourceError(message) from error
    if not found.files:
        reasons = "".join(f"; {sentence}" for sentence in describe(found.left_out))
        raise SourceError(
            f"tools.wikisearch.source: nothing to read at {printable(source)}; wanted a file or a folder of "
            f"{', '.join(SUFFIXES)}{reasons}"
        )
    return found


def _add(path: Path, found: Found) -> None:
    """Add a file, whatever its name, or the files of known names below a folder."""
    try:
        status = path.stat()
    except FileNotFoundError:  # a glob matches the link
        found.left_out.append(LeftOut(str(path), NO_TARGET))
        return
    if stat.S_ISDIR(status.st_mode):
        below = find_below(str(path), lambda name: name.lower().endswith(SUFFIXES), hidden=True)
        # As Path sorts: folder by folder, where "a/b" comes before "a.jsonl".
        found.files += sorted(below.files, key=lambda file: Path(file.path))
        found.left_out += below.left_out
    elif stat.S_ISREG(status.st_mode):
        found.files.append(FoundFile.of(str(path), status))
    else:
        found.left_out.append(LeftOut(str(path), NOT_REGULAR))


def detect_format(file: Path) -> Format | None:
    """Return the format of `file`; None if it is empty; SourceError if it has no known one."""
    first_lines = list(islice(_lines(file), _LINES_TO_DETECT))
    begun = [line.text for line in first_lines if line.text.strip()]
    if not begun and not any(line.problem for line in first_lines) and len(first_lines) < _LINES_TO_DETECT:
        return None
    if len(begun) > 1 and begins_long_value(*begun[:2]):
        shown = f"a JSON value goes over several lines; {WANTED}"
    else:
        for line in first_lines:
            if line.text.lstrip().startswith("{"):
                return "jsonl"
            if line.text.count("\t") >= len(_TSV_COLUMNS) - 1:
                _require_order(file, line.text)
                return "tsv"
        shown = first_lines[0].problem or f"it begins with {(begun or [''])[0][:60]!r}"
        if begun and begun[0].lstrip().startswith("["):
            shown += f"; {WANTED}"
    raise SourceError(
        f"tools.wikisearch.source: {printable(str(file))} is neither jsonl (an object with title and text a "
        f"line) nor tsv (id, text, title): {shown}; convert it or leave it out"
    )


def _require_order(file: Path, line: str) -> None:
    """SourceError if `line` is a header with the columns in another order: titles would be texts."""
    columns = _columns(line.split("\t"))
    if columns != _TSV_COLUMNS and sorted(columns) == sorted(_TSV_COLUMNS):
        raise SourceError(
            f"tools.wikisearch.source: {printable(str(file))} has the columns {', '.join(columns)}; "
            f"wanted {', '.join(_TSV_COLUMNS)}: reorder them or convert the file to jsonl"
        )


def _columns(row: list[str]) -> list[str]:
    return [column.strip('" ').lower() for column in row]


def read_blocks(files: Sequence[Path], characters: int = _BLOCK_CHARACTERS) -> Iterator[Block]:
    """Yield all lines of all files, in blocks of about `characters` characters of one file each."""
    formats = [detect_format(file) for file in files]
    for file, file_format in zip(files, formats, strict=True):
        if file_format is None:
            yield Block(str(file), "jsonl", unreadable=[Skipped(str(file), 1, "empty file")])
            continue
        block, size = Block(str(file), file_format), 0
        for line in _lines(file):
            if line.problem:
                block.unreadable.append(Skipped(str(file), line.number, line.problem))
            else:
                block.lines.append((line.number, line.text))
                size += len(line.text)
            if size >= characters or len(block.lines) + len(block.unreadable) >= _BLOCK_LINES:
                yield block
                block, size = Block(str(file), file_format), 0
        if block.lines or block.unreadable:
            yield block


def _lines(file: Path) -> Iterator[Line]:
    number = 0
    try:
        with file.open("rb") as stream:
            for line in read_lines(iter(lambda: stream.read(_CHUNK_BYTES), b""), ""):
                number = line.number
                yield line
    except (OSError, MemoryError) as error:
        cause = "not enough memory: " if isinstance(error, MemoryError) else ""
        raise SourceError(
            f"tools.wikisearch.source: {printable(str(file))} cannot be read after line {number}: "
            f"{cause}{error}"
        ) from error


def read_articles(block: Block) -> Iterator[Article | Skipped]:
    """Yield every line of a block, as an article or as skipped."""
    yield from block.unreadable
    parse = _from_json if block.format == "jsonl" else _from_tsv
    for number, line in block.lines:
        article = parse(line) if line.strip() else "empty line"
        yield Skipped(block.file, number, article) if isinstance(article, str) else article


def _from_tsv(line: str) -> Article | str:
    try:
        (row,) = csv.reader([line], delimiter="\t", strict=True)
    except (csv.Error, ValueError) as error:
        return f"not a tsv row: {error}"
    if len(row) != len(_TSV_COLUMNS):
        return f"not a tsv row: {len(row)} columns, wanted {', '.join(_TSV_COLUMNS)}"
    return "header" if _columns(row) == _TSV_COLUMNS else _article(row[2], row[1], is_passage=True)


def _from_json(line: str) -> Article | str:
    try:
        record = parse_json(line)
    except ValueError:
        return "not JSON"
    if not isinstance(record, dict):
        return "not an object"
    if "wikipedia_title" in record:
        return _from_kilt(record["wikipedia_title"], record.get("text"))
    text = record.get("text")
    if not isinstance(text, str) or not text.strip():
        return "no text"
    title = record.get("title")
    return _article(_web_title(record, text) if title is None else title, text)


def _from_kilt(title: Any, paragraphs: Any) -> Article | str:
    """Leave out headings, the marks of bullets, and a first paragraph that repeats the title."""
    if not isinstance(paragraphs, list) or not all(isinstance(item, str) for item in paragraphs):
        return "no text"
    if paragraphs and isinstance(title, str) and paragraphs[0].strip() == title.strip():
        paragraphs = paragraphs[1:]
    kept = (_BULLET.sub("", item) for item in paragraphs if not item.startswith(_HEADING))
    return _article(title, "\n".join(kept))


def _web_title(record: dict[str, Any], text: str) -> str:
    """Return a title from the metadata, the end of the URL, or the first line."""
    metadata = record["metadata"] if isinstance(record.get("metadata"), dict) else {}
    if isinstance(metadata.get("title"), str) and metadata["title"].strip():
        return str(metadata["title"])[:MAX_TITLE_CHARACTERS]
    for url in (record.get("url"), metadata.get("url"), record.get("id")):
        if isinstance(url, str) and (title := _title_from_url(url)):
            return title
    line = text.strip().partition("\n")[0]
    kept = line[:_MAX_FIRST_LINE_CHARACTERS]
    return kept if kept == line else kept.rpartition(" ")[0] or kept  # cut between words if possible


def _title_from_url(url: str) -> str | None:
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    name = unquote(parts.path).rstrip("/").rpartition("/")[2] if parts.scheme and parts.netloc else ""
    if len(name) > MAX_TITLE_CHARACTERS:
        return None
    title = re.sub(r"[-_+\s]+", " ", re.sub(r"\.[A-Za-z]{2,5}$", "", name)).strip()
    return title if re.search(r"[^\W\d_]", title) else None


def _article(title: Any, text: str, *, is_passage: bool = False) -> Article | str:
    """Return the article, or the reason for none."""
    if not isinstance(title, str) or not title.strip():
        return "no title"
    if len(title) > MAX_TITLE_CHARACTERS:
        return "title too long"
    one_line = " ".join(_valid(title).split())
    return Article(one_line, _valid(text), is_passage) if text.strip() else "no text"


def _valid(text: str) -> str:
    """Text with "?" for each half of a surrogate pair, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
