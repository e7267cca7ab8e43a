"""Published files as records: JSON, JSON lines and text, each also compressed (gz, bz2, zst).

In: a file, or a folder that is searched with its subfolders. Out: records with their place in the
file for messages. A file of a form that the loader does not know is refused with what was expected
and found; in a folder, such files are not part of the benchmark, and the log names them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.benchmarks.example import BenchmarkFileError, shown
from pipeline.benchmarks.forms import Form, expected, has_form, owner
from tools_service.base.errors import brief
from tools_service.base.lines import read_lines
from tools_service.base.printable import printable

logger = logging.getLogger(__name__)

_COMPRESSIONS = ("gz", "bz2", "zst")
_CONTAINERS = ("data", "Data", "rows", "examples")  # fields of an object that holds the records
_CHUNK_BYTES = 2**20
_MAX_LINE_BYTES = 2**31  # a JSON file may be one line


@dataclass(frozen=True, slots=True)
class Record:
    """An object of a file. `where` names file and line, or file and entry."""

    value: Mapping[str, Any]
    where: str


def read_text(path: Path) -> str:
    """The text of a file in UTF-8 without a BOM, lines ended by a line feed. Raises BenchmarkFileError."""
    compression = path.suffix[1:] if path.suffix[1:] in _COMPRESSIONS else ""
    lines = []
    try:
        if path.is_dir():
            raise BenchmarkFileError(f"{path}: is a folder, name a file in it")
        for line in read_lines(_chunks(path), compression, _MAX_LINE_BYTES):
            if line.problem is not None:
                raise BenchmarkFileError(f"{path}, line {line.number}: {line.problem}")
            lines.append(line.text)
    except OSError as error:
        raise BenchmarkFileError(f"{path}: cannot be read: {brief(error)}") from error
    return "\n".join(lines)


def read_records(name: str, path: Path, forms: Sequence[Form]) -> list[Record]:
    """The records of a JSON file (an array, or an object with them in `data`), or of JSON lines.

    Raises BenchmarkFileError: each must have one of `forms`, which the benchmark `name` expects.
    """
    records = _read_objects(path, f"{name} expects {expected(forms)}")
    for record in records:
        _require_form(name, record, forms)
    return records


def _read_objects(path: Path, wanted: str) -> list[Record]:
    text = read_text(path)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise BenchmarkFileError(f"{path}: holds no question")
    if len(lines) > 1 and _is_object(lines[0][1]):
        return [
            _record(_parse(line, f"{path}, line {number}", wanted), f"{path}, line {number}")
            for number, line in lines
        ]
    content = _parse(text, str(path), wanted)
    if isinstance(content, Mapping):
        inner = next((content[name] for name in _CONTAINERS if isinstance(content.get(name), list)), None)
        content = [content] if inner is None else inner
    if not isinstance(content, list):
        raise BenchmarkFileError(f"{path}: {wanted}; found {shown(content)}")
    if not content:
        raise BenchmarkFileError(f"{path}: holds no question")
    return [_record(value, f"{path}, entry {number}") for number, value in enumerate(content, start=1)]


def records_of_form(
    name: str, source: Path, forms: Sequence[Form], *, suffixes: Sequence[str] = ("json", "jsonl")
) -> list[list[Record]]:
    """The records of each file at `source` that has one of `forms`, sorted by name.

    Raises BenchmarkFileError for a file of another form, or a folder without any of these.
    """
    if not source.is_dir():
        return [read_records(name, source, forms)]
    found, other = [], []
    for path in files_below(source, suffixes):
        records = _read_objects(path, f"{name} expects {expected(forms)}")
        if has_form(records[0].value, forms):
            for record in records:
                _require_form(name, record, forms)
            found.append(records)
        else:
            other.append(path.name)
    if not found:
        raise BenchmarkFileError(f"{source}: {name} expects {expected(forms)}; no file here has them")
    logger.info("%s: %d files of %s%s", name, len(found), source, _unused(other))
    return found


def files_below(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files in a folder and below with one of `suffixes`, compressed or not, without hidden ones.

    Raises BenchmarkFileError if a file is there twice, as it is and compressed.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or any(
            part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts
        ):
            continue
        plain = path.with_suffix("") if path.suffix[1:] in _COMPRESSIONS else path
        if plain.suffix[1:].lower() in suffixes and found.setdefault(str(plain), path) != path:
            raise BenchmarkFileError(f"{found[str(plain)]} and {path} are the same file: remove one of them")
    return list(found.values())


def one_file(name: str, source: Path, suffixes: Sequence[str]) -> Path:
    """`source`, or the only file with one of `suffixes` in that folder. Raises BenchmarkFileError."""
    if not source.is_dir():
        return source
    found = files_below(source, suffixes)
    if len(found) == 1:
        return found[0]
    kinds = " or ".join(f".{suffix}" for suffix in suffixes)
    names = f": {', '.join(path.name for path in found[:4])}" if found else ""
    raise BenchmarkFileError(f"{source}: {name} wants one {kinds} file, and there are {len(found)}{names}")


def _require_form(name: str, record: Record, forms: Sequence[Form]) -> None:
    """Raises BenchmarkFileError if a record has none of `forms`: what was expected and found."""
    if not has_form(record.value, forms):
        whose = owner(record.value)
        raise BenchmarkFileError(
            f"{record.where}: {name} expects {expected(forms)}; found {shown(record.value)}"
            + (f", those of {whose}" if whose else "")
        )


def _unused(names: Sequence[str]) -> str:
    return f"; not part of it: {printable(', '.join(names), 200)}" if names else ""


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _record(value: Any, where: str) -> Record:
    if not isinstance(value, Mapping):
        raise BenchmarkFileError(f"{where}: must be an object, not {shown(value)}")
    return Record(value, where)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parse(text: str, where: str, wanted: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BenchmarkFileError(f"{where}: {wanted}; found no JSON: {brief(error)}") from error
