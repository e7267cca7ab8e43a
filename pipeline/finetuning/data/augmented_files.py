"""The files of C*, read in batches and checked before anything is tokenised (paper section 4.1).

In: the folder that merge wrote. Out: batches of texts in the order of the files, and an index of all
texts: about 40 bytes a text, however long they are. A file that merge did not write is refused with its name.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.storage.manifest import MANIFEST
from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.fingerprint import content_digest

Indices = NDArray[np.int64]

_SCHEMA = pa.schema([("text_id", pa.int64()), ("text", pa.large_string()), ("plain", pa.large_string())])
_TOOLS = "tool_names"  # not in files of earlier versions
_STRINGS = (pa.types.is_string, pa.types.is_large_string)
_ROWS_PER_BATCH = 1_000
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class TextIndex:
    """All n texts, sorted by id: the order of the files does not matter."""

    text_ids: Indices  # [n]
    plain: Indices  # [n]: a number, equal for texts that are equal without their calls
    tool_set: Indices  # [n]: index into `tool_sets`
    tool_sets: tuple[tuple[str, ...] | None, ...]  # tools with a call in a text; None: the file does not say

    def __len__(self) -> int:
        return len(self.text_ids)

    def by_tool(self, indices: Indices) -> dict[str, int]:
        """Texts with a call of each tool among `indices`; "" counts those without any call."""
        counts: Counter[str] = Counter()
        for number, texts in Counter(self.tool_set[indices].tolist()).items():
            tools = self.tool_sets[number]
            for tool in () if tools is None else tools or ("",):
                counts[tool] += texts
        return dict(sorted(counts.items()))


def digest(folder: Path) -> str:
    """Digest of the content of C*. Runs store it, so its value must never change."""
    digests = []
    for path in files_of(folder):
        with reading(path):
            digests.append(bytes.fromhex(content_digest(path, "blake2b")))
    return hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()


def files_of(folder: Path) -> list[Path]:
    """The Parquet files of C*. Raises ConfigurationError if there are none."""
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise ConfigurationError(f"{folder}: no Parquet files; fine-tuning reads the folder that merge wrote")
    return files


def read_index(folder: Path) -> TextIndex:
    """Check all files of C* and index their texts.

    Raises ConfigurationError for a folder that merge did not write, and for texts that are empty or twice.
    """
    ids: list[Indices] = []
    digests: list[NDArray[np.bytes_]] = []
    tool_set: list[Indices] = []
    numbers: dict[tuple[str, ...] | None, int] = {}
    for path in files_of(folder):
        for batch in _checked_batches(path):
            ids.append(batch["text_id"].to_numpy())
            of_batch = b"".join(map(_digest, batch["plain"].to_pylist()))
            digests.append(np.frombuffer(of_batch, dtype=f"S{_DIGEST_BYTES}"))
            names_of_texts = (None if n is None else tuple(n) for n in batch[_TOOLS].to_pylist())
            tool_set.append(np.array([numbers.setdefault(n, len(numbers)) for n in names_of_texts]))
    text_ids = np.concatenate([np.zeros(0, dtype=np.int64), *ids])
    by_id = np.argsort(text_ids, kind="stable")
    text_ids = text_ids[by_id]
    if len(twice := text_ids[1:][text_ids[1:] == text_ids[:-1]]):
        raise ConfigurationError(
            f"{folder}: text_id {twice[0]} occurs twice; remove what merge did not write"
        )
    written = _texts_of_manifest(folder / MANIFEST)
    if written is not None and written != len(text_ids):
        raise ConfigurationError(
            f"{folder}: its files hold {len(text_ids)} texts, and its {MANIFEST} says {written}: files are "
            "missing or do not belong here; merge again"
        )
    if not len(text_ids):
        return TextIndex(text_ids, text_ids, text_ids, ())
    _, plain = np.unique(np.concatenate(digests), return_inverse=True)
    return TextIndex(text_ids, plain[by_id], np.concatenate(tool_set)[by_id], tuple(numbers))


def parquet_row_groups(folder: Path) -> list[tuple[Path, int]]:
    """The row groups of all files, in order: each with the number that `read_texts` takes."""
    groups = []
    for path in files_of(folder):
        with reading(path), pq.ParquetFile(path) as file:
            groups += [(path, number) for number in range(file.num_row_groups)]
    return groups


def read_texts(path: Path, row_group: int | None = None) -> Iterator[pa.Table]:
    """Batches of the texts of one file, or of a row group of it: text_id, text, plain.

    `read_index` must have checked the file.
    """
    groups = None if row_group is None else [row_group]
    with reading(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS_PER_BATCH, row_groups=groups, columns=_SCHEMA.names):
            yield pa.Table.from_batches([batch]).select(_SCHEMA.names).cast(_SCHEMA)


def _checked_batches(path: Path) -> Iterator[pa.Table]:
    """The texts of one file, with the tools. ConfigurationError, naming it, for what merge does not write."""
    missing_values = dict.fromkeys(_SCHEMA.names, 0)
    with reading(path), pq.ParquetFile(path) as file:
        has_tools = _require_columns(path, file.schema_arrow)
        columns = [*_SCHEMA.names, *([_TOOLS] if has_tools else [])]
        for batch in file.iter_batches(_ROWS_PER_BATCH, columns=columns):
            rows = pa.Table.from_batches([batch])
            rows.validate(full=True)  # among others, that the strings are UTF-8
            checked = rows.select(_SCHEMA.names).cast(_SCHEMA)
            for name in _SCHEMA.names:
                missing_values[name] += checked[name].null_count
            if any(missing_values.values()):
                continue  # count them in the rest of the file
            for name in ("text", "plain"):
                blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(checked[name])), 0)
                if empty := checked["text_id"].filter(blank).to_pylist():
                    raise ConfigurationError(f"{path}: the {name} of text_id {empty[0]} is empty")
            tools = rows[_TOOLS] if has_tools else pa.nulls(len(rows))
            yield checked.append_column(_TOOLS, tools)
    for name, count in missing_values.items():
        if count:
            raise ConfigurationError(f"{path}: {count} rows have no {name}")


def _require_columns(path: Path, schema: pa.Schema) -> bool:
    """Whether the file names the tools of its texts. ConfigurationError if a column is missing."""
    if missing := [name for name in _SCHEMA.names if name not in schema.names]:
        raise ConfigurationError(
            f"{path}: columns {missing} are missing (there are {schema.names}): merge writes them"
        )
    for field in _SCHEMA:
        given = schema.field(field.name).type
        kinds = (pa.types.is_integer,) if field.name == "text_id" else _STRINGS
        if not any(is_kind(given) for is_kind in kinds):
            raise ConfigurationError(f"{path}: column {field.name} is {given} and not {field.type}")
    return _TOOLS in schema.names and schema.field(_TOOLS).type == pa.list_(pa.string())


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a damaged or unreadable file raises into a ConfigurationError that names it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise ConfigurationError(f"{path}: cannot be read; merge again: {brief(error)}") from error


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()


def _texts_of_manifest(path: Path) -> int | None:
    """Number of rows that merge says it wrote; None if there is no such manifest."""
    texts = _of_manifest(path, "texts")
    return texts if isinstance(texts, int) else None


def tools_of(folder: Path) -> list[str]:
    """The tools that merge says the texts have calls of; none if there is no such manifest."""
    try:
        return list(_of_manifest(folder / MANIFEST, "tools"))
    except TypeError:
        return []


def _of_manifest(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))[name]
    except (OSError, ValueError, KeyError, TypeError):
        return None
