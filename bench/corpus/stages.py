"""CPU seconds of each step that a text takes before a model sees it, on one core.

In: corpus files, settings, the tokenizer's folder. Out: `Stages` of one pass over the files: every step is
timed alone, on what the previous one gave. Reading and parsing are also timed per file type.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline.annotation.source import from_block, to_block
from pipeline.base.config import CorpusConfig, MethodConfig
from pipeline.base.records import Text
from pipeline.corpus.documents import Record, lines_with_content, read_records
from pipeline.corpus.files import CorpusFile
from pipeline.corpus.passages import TokenStarts, split_passages
from pipeline.corpus.texts import read_file
from pipeline.method.selection import select
from pipeline.syntax.tokenizer import TokenCounter, load_tokenizer, tokenize_continuations

BATCH = 64  # texts, as by default in annotate

T = TypeVar("T")


@dataclass(frozen=True)
class Stages:
    """Seconds by step, in the order of the steps, and what was read."""

    seconds: dict[str, float]
    characters: int
    documents: int
    texts: int
    selected: dict[str, int]
    plain_splitting_s: float
    """Splitting as it is defined: every slice that is tried is tokenized."""


def run_stages(
    files: Sequence[CorpusFile], config: CorpusConfig, method: MethodConfig, model_path: str
) -> Stages:
    """One pass. The steps: reading, parsing, splitting, blocks, select TOOL, tokenizing."""
    count = TokenCounter(model_path)
    seconds: dict[str, float] = {}
    seconds["reading"], _ = timed(lambda: sum(map(read_lines, files)))
    parsed_s, records = timed(lambda: [record for file in files for record in read_records(file, config)])
    seconds["parsing"] = max(0.0, parsed_s - seconds["reading"])
    max_tokens = config.max_tokens
    seconds["splitting"], _ = timed(lambda: split(records, count, max_tokens, count.starts))
    plain_splitting_s, _ = timed(lambda: split(records, count, max_tokens, None))
    texts = [text for file in files for text in read_file(file, config, count, method.tools)]
    batches = [texts[n : n + BATCH] for n in range(0, len(texts), BATCH)]
    seconds["blocks"], _ = timed(lambda: [from_block(to_block(batch)) for batch in batches])
    usable = [text for text in texts if text.skipped is None]
    selected = {}
    for tool in method.tools:
        select(tool, usable[0], method)  # loads what it needs
        seconds[f"select {tool}"], chosen = timed(lambda tool=tool: chosen_by(tool, usable, method))
        selected[tool] = sum(chosen)
    tokenizer = load_tokenizer(model_path)
    strings = [[" " + text.text for text in batch if text.skipped is None] for batch in batches]
    seconds["tokenizing"], _ = timed(lambda: [tokenize_continuations(tokenizer, batch) for batch in strings])
    characters = sum(len(record.text) for record in records)
    return Stages(seconds, characters, len(records), len(usable), selected, plain_splitting_s)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of this process, and the result."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def read_lines(file: CorpusFile) -> int:
    """Characters of the decompressed lines of a file; 0 for Parquet, which has no lines."""
    if file.format == "parquet":
        return 0
    return sum(len(line.text) for line in lines_with_content(file))


def split(records: Sequence[Record], count: TokenCounter, max_tokens: int, starts: TokenStarts | None) -> int:
    """The number of passages of all records."""
    texts = [record.text for record in records if record.problem is None]
    return sum(1 for text in texts for _ in split_passages(text, count, max_tokens, starts))


def chosen_by(tool: str, texts: Sequence[Text], method: MethodConfig) -> list[bool]:
    """Whether the tool is tried on each text."""
    return [select(tool, text, method).chosen for text in texts]
