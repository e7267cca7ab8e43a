"""The corpus as a Ray Data source: Arrow blocks of TEXT_SCHEMA, read by one task per group of files.

In: corpus files, and the ids of the texts that are done. Out: blocks of the other texts, and the number of
texts per task for the progress actor, to compare rows written with texts read. Texts that no tool is tried
on may get their rows here (unselected.py) and are then in no block. Ray's own readers fail or
repeat rows on resume (docs/decisions/0004), know no passages, and lose a file to one bad line.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from pipeline.annotation.unselected import UnselectedRows
from pipeline.base.config import CorpusConfig
from pipeline.base.records import TEXT_SCHEMA, Document, Text
from pipeline.corpus.files import CorpusFile
from pipeline.corpus.texts import read_corpus
from pipeline.storage.row_files import Ids
from pipeline.syntax.tokenizer import TokenCounter

_BLOCK_ROWS = 64
_GROUP_BYTES = 2**20  # compressed: seconds of reading
_REPORT_S = 2.0
_MIN_READ_BYTES = 2**20  # the chunk that is read, but not yet texts, must be little beside it


class TextSource(Datasource):
    """The texts of groups of corpus files, one read task per group, without finished texts."""

    def __init__(
        self,
        groups: Sequence[Sequence[CorpusFile]],
        config: CorpusConfig,
        count: TokenCounter,
        done: ray.ObjectRef[Ids],
        progress: Any,
        tools: Collection[str] = (),
        unselected: UnselectedRows | None = None,
    ) -> None:
        """`done` are the sorted ids of the finished texts, `progress` is the progress actor; calls of
        `tools` count as call syntax; `unselected` takes the texts that no tool is tried on."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._groups = groups
        self._read = partial(_read, config, count, done, progress, tools, unselected)

    def get_name(self) -> str:
        """What Ray's dashboard shows after "Read"."""
        return "Texts"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: file sizes are compressed, and nothing depends on it."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task per group; `parallelism` is ignored."""
        return [
            ReadTask(
                partial(self._read, f"{number} {group[0].name}", group),
                BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None),
                schema=TEXT_SCHEMA,
                per_task_row_limit=per_task_row_limit,
            )
            for number, group in enumerate(self._groups)
        ]


def read_groups(files: Sequence[CorpusFile], config: CorpusConfig) -> list[list[CorpusFile]]:
    """Files in their order: small neighbours together, because each process that reads imports and loads a
    tokenizer first; all in one group if `max_texts` is set, because then the order matters."""
    if config.max_texts is not None:
        return [list(files)]
    groups: list[list[CorpusFile]] = []
    room = 0
    for file in files:
        size = _GROUP_BYTES if file.size is None else file.size
        if not groups or size > room:
            groups.append([])
            room = _GROUP_BYTES
        groups[-1].append(file)
        room -= size
    return groups


def to_block(texts: Iterable[Text]) -> pa.Table:
    """Texts as an Arrow table of TEXT_SCHEMA."""
    return pa.Table.from_pylist([asdict(text) for text in texts], schema=TEXT_SCHEMA)


def from_block(block: pa.Table) -> list[Text]:
    """The inverse of `to_block`."""
    return [Text(**{**row, "document": Document(**row["document"])}) for row in block.to_pylist()]


def _read(
    config: CorpusConfig,
    count: TokenCounter,
    done: ray.ObjectRef[Ids],
    progress: Any,
    tools: Collection[str],
    unselected: UnselectedRows | None,
    task: str,
    files: Sequence[CorpusFile],
) -> Iterator[pa.Table]:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a task has one CPU
    done_ids: Ids = ray.get(done)
    watched = [_WatchedFile(**asdict(file)) for file in files]
    texts = read_corpus(watched, config, count, tools)
    texts_read, reported = 0, time.monotonic()
    while block := list(islice(texts, _BLOCK_ROWS)):
        texts_read += len(block)
        if time.monotonic() >= reported + _REPORT_S and (share := share_read(watched)):
            reported = time.monotonic()
            share = max(share, texts_read / config.max_texts if config.max_texts else 0.0)
            progress.reading.remote(task, texts_read, share)
        remaining = [text for text in block if not _contains(done_ids, text.text_id)]
        if unselected is not None:
            remaining = unselected.take(remaining)
        if remaining:
            yield to_block(remaining)
    if unselected is not None:
        unselected.write()
    # Wait, so that the total is complete when the last row has been written.
    ray.get(progress.read.remote(task, texts_read))


class _WatchedFile(CorpusFile):
    """A file that keeps its stream, which knows how far it is read."""

    stream: pa.NativeFile | None = None

    def open_stream(self) -> pa.NativeFile:
        object.__setattr__(self, "stream", super().open_stream())  # the class is frozen
        return self.stream


def share_read(files: Sequence[_WatchedFile]) -> float | None:
    """The share of the files' bytes that is read; None where it is not known well enough."""
    positions = [0 if file.stream is None else _position(file, file.stream) for file in files]
    sizes = [file.size for file in files if file.size is not None]
    if len(sizes) < len(files) or sum(positions) < _MIN_READ_BYTES:
        return None
    return sum(positions) / sum(sizes)


def _position(file: CorpusFile, stream: pa.NativeFile) -> int:
    return file.size or 0 if stream.closed else int(stream.tell())


def _contains(ids: Ids, text_id: int) -> bool:
    """Binary search in sorted ids."""
    index = int(np.searchsorted(ids, text_id))
    return index < len(ids) and int(ids[index]) == text_id
