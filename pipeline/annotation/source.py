"""The corpus as a Ray Data source: Arrow blocks of TEXT_SCHEMA, one read task per shard.

Ray's own readers do not fit: they crash or repeat themselves on resume (docs/decisions/0004), know nothing of
passages and ids, and lose a file to one bad line. A read task leaves out the texts that an earlier run has
already written, and tells the tally how many texts its shards hold, so that the rows written can be held
against the texts read. Reading itself is corpus.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from pipeline.base.config import CorpusConfig
from pipeline.base.records import TEXT_SCHEMA, Document, Text
from pipeline.corpus.files import CorpusFile
from pipeline.corpus.texts import read_corpus
from pipeline.storage.row_files import Ids
from pipeline.syntax.tokenizer import TokenCounter

if TYPE_CHECKING:
    pass

_BLOCK_ROWS = 64


@dataclass(frozen=True, slots=True)
class Corpus:
    """What a read task needs besides its shards; references that Ray resolves in any process."""

    config: CorpusConfig
    count: TokenCounter
    """Says how long a text is."""
    done: ray.ObjectRef[Ids]
    """Sorted int64 ids of the texts not to read again."""
    tally: Any
    """Actor handle of progress.Tally."""


class TextSource(Datasource):
    """The texts of groups of shards, each group one read task; texts that are done are left out."""

    def __init__(self, groups: Sequence[Sequence[CorpusFile]], corpus: Corpus) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._groups = groups
        self._corpus = corpus

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: compressed files tell little, and nothing here depends on it."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task per group, whatever the wanted parallelism."""
        return [
            ReadTask(
                partial(_read, f"{number} {group[0].name}", group, self._corpus),
                BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None),
                schema=TEXT_SCHEMA,
                per_task_row_limit=per_task_row_limit,
            )
            for number, group in enumerate(self._groups)
        ]


def read_groups(shards: Sequence[CorpusFile], config: CorpusConfig) -> list[list[CorpusFile]]:
    """Shards one by one; all together where `max_texts` makes their order matter."""
    return [[shard] for shard in shards] if config.max_texts is None else [list(shards)]


def to_block(texts: Iterable[Text]) -> pa.Table:
    """Texts as one Arrow table."""
    return pa.Table.from_pylist([asdict(text) for text in texts], schema=TEXT_SCHEMA)


def from_block(block: pa.Table) -> list[Text]:
    """The inverse of `to_block`."""
    return [Text(**{**row, "document": Document(**row["document"])}) for row in block.to_pylist()]


def _read(task: str, shards: Sequence[CorpusFile], corpus: Corpus) -> Iterator[pa.Table]:
    done: Ids = ray.get(corpus.done)
    read = 0

    def fresh() -> Iterator[Text]:
        nonlocal read
        for text in read_corpus(shards, corpus.config, corpus.count):
            read += 1
            if not _among(done, text.text_id):
                yield text

    texts = fresh()
    while block := list(islice(texts, _BLOCK_ROWS)):
        yield to_block(block)
    # Waited for, so that no count is missing when the last row has been written.
    ray.get(corpus.tally.read.remote(task, read))


def _among(ids: Ids, text_id: int) -> bool:
    index = int(np.searchsorted(ids, text_id))
    return index < len(ids) and int(ids[index]) == text_id
