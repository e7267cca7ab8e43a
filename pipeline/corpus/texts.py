"""The corpus C: the texts that everything else works on (paper section 2 and 4.1; docs/corpus.md).

In: `CorpusConfig`, and a function that counts tokens as the model sees a text. Out: a stream of `Text` rows,
one per passage and one per document that cannot be used, with the reason in `skipped`. Files are found by
shards.py, read by documents.py, cut by passages.py; here they come together and get their ids. Needs no model
and no Ray.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from pipeline.base.config import CorpusConfig
from pipeline.base.records import Text, reason_kind
from pipeline.corpus.documents import Record, read_records
from pipeline.corpus.files import CorpusError, CorpusFile
from pipeline.corpus.passages import split_passages

_ID_RANGE = 2**63
# More passages than a document of the largest allowed size (CorpusConfig.max_document_characters) can have.
_PASSAGES = 2**26
_ROWS_TRIED = 1_000
_REASONS_SHOWN = 5


def read_file(shard: CorpusFile, config: CorpusConfig, count: Callable[[str], int]) -> Iterator[Text]:
    """The texts of one file, in order; `count` counts tokens. CorpusError if it cannot be opened."""
    for record in read_records(shard, config):
        yield from _texts(shard, record, config, count)


def read_corpus(
    shards: Iterable[CorpusFile], config: CorpusConfig, count: Callable[[str], int]
) -> Iterator[Text]:
    """The texts of several files one after the other, up to `config.max_texts`."""
    texts = (text for shard in shards for text in read_file(shard, config, count))
    return islice(texts, config.max_texts)


def require_readable(shards: Iterable[CorpusFile], config: CorpusConfig) -> None:
    """CorpusError with the reasons if no file has a readable document among its first 1,000 lines or rows.

    Ends at the first readable one: on a sound corpus this costs one line. It catches a misspelt field name, a
    wrong folder or a wrong format before anything expensive starts.
    """
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for shard in shards:
        for record in islice(read_records(shard, config), _ROWS_TRIED):
            if record.problem is None:
                return
            reasons[reason_kind(record.problem)] += 1
            examples.setdefault(reason_kind(record.problem), record.problem)
    shown = "; ".join(f"{n:,} x {examples[kind]}" for kind, n in reasons.most_common(_REASONS_SHOWN))
    raise CorpusError(f"no readable document in {', '.join(config.paths)}: {shown}")


def text_id(name: str, row: int, passage: int) -> int:
    """The id of the passage (from 0) of row `row` (from 1) of the shard called `name`: 0 <= id < 2**63.

    The shard's name gives a random start, row and passage the distance from it. Within a shard no two ids are
    equal; docs/decisions/0007 has the probability that ids of two shards are.
    """
    return (_first_id(name) + row * _PASSAGES + passage) % _ID_RANGE


@functools.cache
def _first_id(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _ID_RANGE


def _texts(
    shard: CorpusFile, record: Record, config: CorpusConfig, count: Callable[[str], int]
) -> Iterator[Text]:
    if record.problem is not None:
        yield Text(text_id(shard.name, record.row, 0), record.document, "", record.problem)
        return
    for number, passage in enumerate(split_passages(record.text, count, config.max_tokens)):
        problem = passage.problem
        if problem is None and len(passage.text) < config.min_characters:
            problem = f"short passage: fewer than {config.min_characters} characters"
        skipped = problem and f"{problem} at {record.document.source}"
        yield Text(text_id(shard.name, record.row, number), record.document, passage.text, skipped)
