"""Sample a corpus, and estimate how many texts it has.

In: corpus files and the number of texts wanted. Out: texts from files spread over the list, and the estimate:
the texts read, divided by the share of the bytes that were read for them. A small corpus is read completely;
the number is then exact. Uses no model and no Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.config import CorpusConfig
from pipeline.base.records import Text
from pipeline.corpus.files import CorpusFile
from pipeline.corpus.texts import read_file
from tools_service.base.settings import Frozen

_MAX_FILES = 8
_MIN_BYTES = 2**20  # readers buffer up to 64 KiB ahead of the texts: a small error from here on


class CorpusSample(Frozen):
    """How much of the corpus was read, and the estimated number of texts."""

    files: int
    bytes: int | None  # None if the file system does not report sizes
    files_read: int  # completely or in part
    bytes_read: int | None
    texts_read: int
    texts: int  # estimate; exact if everything was read


@dataclass(frozen=True, slots=True)
class _TrackedFile(CorpusFile):
    """A corpus file that notes the sizes of the chunks read from it."""

    chunks: list[int]

    def open_stream(self) -> pa.NativeFile:
        return pa.TransformInputStream(CorpusFile.open_stream(self), self._note_size)

    def _note_size(self, chunk: pa.Buffer) -> pa.Buffer:
        self.chunks.append(len(chunk))
        return chunk

    def share_read(self) -> float | None:
        """Share of the bytes read so far; None if unknown, or if too few were read to judge by."""
        bytes_read = sum(self.chunks)
        return min(1.0, bytes_read / self.size) if self.size and bytes_read >= _MIN_BYTES else None


def sample_corpus(
    files: Sequence[CorpusFile], config: CorpusConfig, count_tokens: Callable[[str], int], size: int
) -> tuple[CorpusSample, list[Text]]:
    """Read `size` texts (fewer if the corpus has fewer) from files all over the list."""
    files_read = min(_MAX_FILES, len(files))
    texts: list[Text] = []
    texts_read, shares, bytes_read = 0, 0.0, 0.0
    for number in range(files_read):
        # A file with too few texts leaves more to the later files, down to the last one.
        quota = -(-(size - len(texts)) // (files_read - number))
        file = files[number * len(files) // files_read]
        file_texts, share = _read_part(file, config, count_tokens, max(1, quota))
        texts += file_texts[:quota]
        texts_read += len(file_texts)
        shares += share
        bytes_read += share * (file.size or 0)
    sizes = [file.size for file in files if file.size is not None]
    total_bytes = sum(sizes) if len(sizes) == len(files) else None
    # Without sizes, or if all files of the sample are empty, each file counts the same.
    estimate = (
        texts_read * total_bytes / bytes_read
        if total_bytes and bytes_read
        else len(files) * texts_read / shares
    )
    return CorpusSample(
        files=len(files),
        bytes=total_bytes,
        files_read=files_read,
        bytes_read=None if total_bytes is None else round(bytes_read),
        texts_read=texts_read,
        texts=round(estimate),
    ), texts


def _read_part(
    file: CorpusFile, config: CorpusConfig, count_tokens: Callable[[str], int], size: int
) -> tuple[list[Text], float]:
    """The first texts of a file, at least `size` of them, and the share of the file that they take."""
    tracked = _TrackedFile(file.name, file.path, file.root, file.size, [])
    rows = 0
    if file.format == "parquet":
        # read_file reports a damaged file, and a file that cannot be read.
        with suppress(Exception), file.open_random() as stream:
            rows = pq.read_metadata(stream).num_rows

    texts: list[Text] = []
    share = None
    documents = groupby(read_file(tracked, config, count_tokens), lambda text: text.document.source)
    for source, document_texts in documents:  # stop between documents only
        if len(texts) >= size and share:
            return texts, share
        share = int(source.rpartition("#")[2]) / rows if rows else tracked.share_read()
        texts += document_texts
    return texts, 1.0
