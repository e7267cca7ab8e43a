"""The encyclopedia WikiSearch searches: files of articles in, passages of about 100 words out, one at a time.

A source is a jsonl file (also .gz, .zst, .bz2), a folder of them, or a glob; every line is an object with
`title` and `text`. A line that cannot be read is skipped with file, line and reason, and reading goes on; a
source without a single file is an error. This module does not index.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.errors import ConfigurationError

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst", ".jsonl.bz2", ".json.bz2")
PASSAGE_WORDS = 100

_SENTENCE_END = re.compile(r"[.!?][\"')\]]*$")


class EncyclopediaError(ConfigurationError):
    """The encyclopedia cannot be used; names the file or folder and what to do."""


@dataclass(frozen=True, slots=True)
class Article:
    """One line of the source."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A line that gave no article. Lines count from 1."""

    file: str
    line: int
    reason: str


def source_files(sources: Sequence[str]) -> list[Path]:
    """The files of all `sources` in a fixed order."""
    return [file for source in sources for file in _files(source)]


def _files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(SUFFIXES))
    elif path.is_file():
        found = [path]
    else:
        anchor = Path(path.anchor)
        found = sorted(anchor.glob(str(path.relative_to(anchor)))) if path.parts else []
    if not found:
        wanted = ", ".join(SUFFIXES)
        raise EncyclopediaError(
            f"tools.wikisearch.source: nothing to read at {source}; wanted a file or folder of {wanted}"
        )
    return found


def read_articles(files: list[Path]) -> Iterator[Article | Skipped]:
    """Every line of every file, as an article or as skipped."""
    for file in files:
        number = 0
        try:
            with pa.input_stream(str(file), compression="detect") as stream:
                for number, line in enumerate(io.BufferedReader(stream), start=1):
                    yield _article(line, str(file), number)
        except (
            OSError,
            EOFError,
        ) as error:  # truncated or damaged compression: the rest of this file is lost
            yield Skipped(str(file), number + 1, f"unreadable from here on: {type(error).__name__}")


def _article(line: bytes, file: str, number: int) -> Article | Skipped:
    try:
        record = json.loads(line)
    except UnicodeDecodeError:
        return Skipped(file, number, "not UTF-8")
    except (ValueError, RecursionError):
        return Skipped(file, number, "not JSON" if line.strip() else "empty line")
    if not isinstance(record, dict):
        return Skipped(file, number, "not an object")
    for name in ("title", "text"):
        if not isinstance(record.get(name), str) or not record[name].strip():
            return Skipped(file, number, f"no {name}")
    return Article(_folded(record["title"]), record["text"])


def passages(text: str, words: int = PASSAGE_WORDS) -> Iterator[str]:
    """`text` in pieces of about `words` words: each ends at the first sentence end past that, or at 1.5 times
    as many.

    Joined with spaces the pieces are the text's words again; a last piece of fewer than a quarter of `words`
    joins the one before it.
    """
    every = text.split()
    start = 0
    while len(every) - start > words + words // 4:
        longest = min(start + words + words // 2, len(every))
        ends = (n for n in range(start + words, longest) if _SENTENCE_END.search(every[n - 1]))
        end = next(ends, longest)
        if len(every) - end < words // 4:
            break
        yield " ".join(every[start:end])
        start = end
    if start < len(every):
        yield " ".join(every[start:])


def _folded(text: str) -> str:
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
