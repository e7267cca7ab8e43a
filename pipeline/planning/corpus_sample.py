"""How many texts a corpus has, from a part of it.

In: shards, and how many texts are wanted. Out: those texts, spread over the corpus, and an estimate of how
many there are: those found, by the share of the bytes that were read for them. A small corpus is read whole,
and then the number is exact. No model, no Ray.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.config import CorpusConfig
from pipeline.base.records import Text
from pipeline.corpus.files import CorpusFile
from pipeline.corpus.texts import read_file
from tools_service.base.settings import Frozen

_FILES = 8
# Streams are read ahead by up to 64 KiB; of this much that is little.
_LEAST_BYTES = 2**20


class Survey(Frozen):
    """What was looked at, and what that says of the whole."""

    files: int
    bytes: int | None
    """None if the file system does not tell."""
    files_read: int
    """In whole or in part."""
    bytes_read: int | None
    texts_read: int
    texts: int
    """Estimated; exact if everything was read."""


class _Meter(io.RawIOBase):
    """A stream that counts the bytes read from it."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self.stream, self.bytes = stream, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data: bytes = self.stream.read(size if size >= 0 else None)
        self.bytes += len(data)
        return data

    def close(self) -> None:
        self.stream.close()
        super().close()


@dataclass(frozen=True, slots=True)
class _Watched(CorpusFile):
    """A shard that shows how far it has been read."""

    opened: list[_Meter]

    def open_stream(self) -> pa.NativeFile:
        meter = _Meter(CorpusFile.open_stream(self))
        self.opened.append(meter)
        return pa.PythonFile(meter, mode="r")


def survey(
    shards: Sequence[CorpusFile], config: CorpusConfig, count: Callable[[str], int], wanted: int
) -> tuple[Survey, list[Text]]:
    """An estimate, and `wanted` texts, or as many as there are, from files all over the list."""
    files = min(_FILES, len(shards))
    texts: list[Text] = []
    read, found, looked, parts = 0.0, 0, 0, 0.0
    for number in range(files):
        # Those not reached by earlier files are asked of later ones, the very last included.
        quota = -(-(wanted - len(texts)) // (files - number))
        shard = shards[number * len(shards) // files]
        own, share = _read_some(shard, config, count, max(1, quota))
        texts += own[: max(0, quota)]
        found, looked, parts = found + len(own), looked + 1, parts + share
        read += share * (shard.size or 0)
    sizes = [shard.size for shard in shards]
    known = [size for size in sizes if size is not None]
    total = sum(known) if len(known) == len(sizes) else None
    whole = len(shards) * found / parts if not total else found * total / read
    return Survey(
        files=len(shards),
        bytes=total,
        files_read=looked,
        bytes_read=None if total is None else round(read),
        texts_read=found,
        texts=round(whole),
    ), texts


def _read_some(
    shard: CorpusFile, config: CorpusConfig, count: Callable[[str], int], wanted: int
) -> tuple[list[Text], float]:
    """The first texts of a file, `wanted` or more, and the share of the file that they are."""
    watched = _Watched(shard.name, shard.path, shard.root, shard.size, [])
    rows = _rows(shard) if shard.format == "parquet" else None
    texts: list[Text] = []
    last, share = "", None
    for text in read_file(watched, config, count):
        source = text.document.source
        if source != last:  # a document's passages belong together
            if len(texts) >= wanted and share:
                return texts, share
            share = int(source.rpartition("#")[2]) / rows if rows else _share(watched)
        texts.append(text)
        last = source
    return texts, 1.0


def _share(watched: _Watched) -> float | None:
    """The share of the bytes that has been read for the documents so far; None while it says little."""
    read = watched.opened[-1].bytes if watched.opened else 0
    return min(1.0, read / watched.size) if watched.size and read >= _LEAST_BYTES else None


def _rows(shard: CorpusFile) -> int | None:
    """Of a Parquet file; None if it is damaged, which read_shard will say."""
    try:
        with shard.open_random() as file:
            return int(pq.ParquetFile(file).metadata.num_rows)
    except (pa.ArrowException, OSError):
        return None
