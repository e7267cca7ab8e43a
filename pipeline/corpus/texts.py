"""The texts of the corpus C with their ids (paper sections 2 and 4.1; docs/corpus.md).

In: corpus files, `CorpusConfig`, and a function that counts the tokens of a text. Out: a stream of `Text`
rows, one per passage, and one per unusable document with the reason in `skipped`. No model and no Ray.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice

from pipeline.base.config import CorpusConfig
from pipeline.base.records import Text, reason_kind
from pipeline.corpus.documents import read_records
from pipeline.corpus.files import CorpusError, CorpusFile
from pipeline.corpus.passages import split_passages
from pipeline.syntax.tokenizer import TokenCounter
from tools_service.base.printable import printable
from tools_service.syntax.calls import has_call_syntax

_ID_RANGE = 2**63
# Upper bound of the passages per document: the limit of CorpusConfig.max_document_characters.
_MAX_PASSAGES = 2**26
_MAX_RECORDS_TRIED = 1_000
_MAX_REASONS_SHOWN = 5


def read_file(
    file: CorpusFile, config: CorpusConfig, count: Callable[[str], int], tools: Collection[str] = ()
) -> Iterator[Text]:
    """The texts of one file in order; `count` counts tokens. CorpusError if it cannot be read.

    `tools` are those, beside the installed ones, whose calls count as call syntax.
    """
    starts = count.starts if isinstance(count, TokenCounter) else None
    for record in read_records(file, config):
        if record.problem is not None:
            yield Text(text_id(file.name, record.row, 0), record.document, "", record.problem)
            continue
        passages = split_passages(record.text, count, config.max_tokens, starts)
        for number, passage in enumerate(passages):
            problem = passage.problem
            if problem is None and len(passage.text) < config.min_characters:
                problem = f"short passage: fewer than {config.min_characters} characters"
            if problem is None and config.skip_call_syntax and has_call_syntax(passage.text, tools):
                problem = "call syntax: the text already holds a call, and skip_call_syntax is set"
            skipped = problem and f"{problem} at {record.document.source}"
            yield Text(text_id(file.name, record.row, number), record.document, passage.text, skipped)


def read_corpus(
    files: Iterable[CorpusFile],
    config: CorpusConfig,
    count: Callable[[str], int],
    tools: Collection[str] = (),
) -> Iterator[Text]:
    """The texts of several files, one file after the other, up to `config.max_texts`."""
    texts = (text for file in files for text in read_file(file, config, count, tools))
    return islice(texts, config.max_texts)


def require_readable(files: Iterable[CorpusFile], config: CorpusConfig) -> None:
    """Check that some file has a readable document among its first 1,000 lines or rows.

    The check detects a misspelt field name, a wrong folder or a wrong format before anything expensive
    starts, and costs one line of a sound corpus. Raises CorpusError with the reasons.
    """
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for file in files:
        for record in islice(read_records(file, config), _MAX_RECORDS_TRIED):
            if record.problem is None:
                return
            reasons[reason_kind(record.problem)] += 1
            examples.setdefault(reason_kind(record.problem), record.problem)
    shown = "; ".join(f"{n:,} x {examples[kind]}" for kind, n in reasons.most_common(_MAX_REASONS_SHOWN))
    raise CorpusError(f"no readable document in {printable(', '.join(config.paths), 1_000)}: {shown}")


def text_id(name: str, row: int, passage: int) -> int:
    """The id of a passage (from 0) in a row (from 1) of corpus file `name`: 0 <= id < 2**63.

    The file name determines a pseudo-random start; row and passage are the offset from it. The ids of one
    file are distinct; docs/decisions/0007 gives the probability of a collision between two files.
    """
    return (_first_id(name) + row * _MAX_PASSAGES + passage) % _ID_RANGE


@functools.cache
def _first_id(name: str) -> int:
    """Row files of earlier runs hold these ids, so the digest must stay as it is."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _ID_RANGE
