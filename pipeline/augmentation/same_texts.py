"""Texts that several annotations hold, as rounds of one corpus do (docs/rounds.md, decisions/0042).

In: annotation folders. Out: an error, where no text may be shared or where one id has different texts; or
rows with the calls of all folders united. Rows wait on disk in parts by id, so that memory holds one part
and the ids. The result does not depend on the order of the folders or of their files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from itertools import groupby, islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa

from pipeline.base.records import ANNOTATION_SCHEMA
from pipeline.storage.row_files import Ids, read_batches
from tools_service.base.errors import ConfigurationError

_SCHEMA = pa.schema([ANNOTATION_SCHEMA.field(name) for name in ("text_id", "text", "calls")])
_PART_ROWS = 50_000  # rows of a part that are in memory at once, if every text has a call
_MAX_PARTS = 401  # open files; odd, because ids of neighbouring rows differ by 2**26
_CHUNK_ROWS = 16_384


class SameTextError(ConfigurationError):
    """Annotations share a text that may not be united."""


def require_distinct(folders: Sequence[Path]) -> int:
    """The number of texts. SameTextError if two folders share one, as two annotations of one corpus do."""
    ids = np.concatenate([np.empty(0, np.int64), *(_ids(folder) for folder in folders)])
    ids.sort()
    duplicates = ids[1:][ids[1:] == ids[:-1]]
    if len(duplicates):
        holders = ", ".join(_holders(folders, duplicates[0]))
        raise SameTextError(
            f"annotations: {len(duplicates)} duplicate texts, for example text {duplicates[0]} in {holders}; "
            "merge annotations of different texts, or unite the calls of equal texts with --same-texts unite"
        )
    return len(ids)


def require_equal_texts(folders: Sequence[Path]) -> int:
    """The number of different texts in the folders. SameTextError if one id has two texts."""
    ids, digests = (np.concatenate(arrays) for arrays in zip(*map(_digests, folders), strict=True))
    order = np.lexsort((digests, ids))
    ids, digests = ids[order], digests[order]
    is_again = ids[1:] == ids[:-1]
    if len(clashes := ids[1:][is_again & (digests[1:] != digests[:-1])]):
        holders = ", ".join(_holders(folders, clashes[0]))
        raise SameTextError(
            f"annotations: {len(np.unique(clashes))} ids have different texts, for example {clashes[0]} in "
            f"{holders}; --same-texts unite needs annotations of one corpus, split into the same texts"
        )
    return len(ids) - int(is_again.sum())


def united(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One row with the calls of several rows of one text; equal calls count once.

    Calls are equal if tool, position and input are. The one with the largest gain stays, with its result; of
    equal gains the result first in the alphabet.
    """
    best: dict[tuple[int, str, str], Mapping[str, Any]] = {}
    first: Mapping[str, Any] = {}
    for row in rows:
        first = first or row
        for call in row["calls"]:
            key = call["position"], call["tool"], call["input"]
            best[key] = min(best.get(key, call), call, key=lambda c: (-c["gain"], c["result"]))
    return {**first, "calls": [best[key] for key in sorted(best)]}


class UnitedRows:
    """Rows of several folders, those of one text united; they can be read several times.

    The files have no names: they are gone when this is closed, and also when the process dies.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], texts: int, scratch: Path | None) -> None:
        """Store `rows` of `texts` different texts in files in the folder `scratch`."""
        count = min(_MAX_PARTS, 1 + 2 * (texts // (2 * _PART_ROWS)))
        with ExitStack() as stack:
            self._parts: list[IO[bytes]] = [
                stack.enter_context(tempfile.TemporaryFile(dir=scratch)) for _ in range(count)
            ]
            self._write(iter(rows))
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _write(self, rows: Iterator[Mapping[str, Any]]) -> None:
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with ExitStack() as writers:
            streams = [
                writers.enter_context(pa.ipc.new_stream(part, _SCHEMA, options=options))
                for part in self._parts
            ]
            while chunk := list(islice(rows, _CHUNK_ROWS)):
                batch = pa.RecordBatch.from_pylist(chunk, _SCHEMA)
                part_of_row = batch["text_id"].to_numpy() % len(streams)
                for number in np.unique(part_of_row):
                    streams[number].write_batch(batch.filter(pa.array(part_of_row == number)))

    def read(self) -> Iterator[dict[str, Any]]:
        """The rows, each text once."""
        for part in self._parts:
            part.seek(0)
            rows = pa.ipc.open_stream(part).read_all().to_pylist()
            rows.sort(key=lambda row: int(row["text_id"]))
            for _, same in groupby(rows, key=lambda row: row["text_id"]):
                yield united(same)


def _holders(folders: Sequence[Path], text_id: int) -> list[str]:
    return [str(folder) for folder in folders if text_id in _ids(folder)]


def _ids(folder: Path) -> Ids:
    batches = [batch["text_id"].to_numpy() for batch in read_batches(folder, ["text_id"])]
    return np.concatenate([np.empty(0, np.int64), *batches])


def _digests(folder: Path) -> tuple[Ids, Ids]:
    """The id of each text, and 64 bits of a hash of it."""
    ids, digests = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for batch in read_batches(folder, ["text_id", "text"]):
        hashed = [blake2b(text.as_buffer(), digest_size=8).digest() for text in batch["text"]]
        ids.append(batch["text_id"].to_numpy())
        digests.append(np.frombuffer(b"".join(hashed), np.int64))
    return np.concatenate(ids), np.concatenate(digests)
