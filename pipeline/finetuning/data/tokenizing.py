"""C* → its token store: tokenised once, by this process or by Ray Data on all CPUs of the cluster.

In: the files of C* and a tokenizer. Out: the store of a run, written if it is not there yet. The texts are
read and tokenised in batches, so that memory holds some of them and the index of all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.data.augmented_files import (
    TextIndex,
    files_of,
    parquet_row_groups,
    read_texts,
    tools_of,
)
from pipeline.finetuning.data.examples import ExampleEncoder, Examples
from pipeline.finetuning.data.streaming import examples_of, in_order, table_of
from pipeline.finetuning.data.token_store import TokenStore, store_of, write
from pipeline.storage.kinds import TOKENS
from tools_service.base.locks import output_lock
from tools_service.base.ownership import replacing_folder

logger = logging.getLogger(__name__)


def prepare(config: FinetuneConfig, tokenizer: Any, data: str, index: TextIndex) -> TokenStore:
    """The store of a run, written if it is not there yet; another run that writes it is waited for.

    With `reader` streamed, Ray Data tokenises on all CPUs of the cluster that this process is connected to.
    Raises OutputError if the store cannot be written, NotOwnError if something else has its name.
    """
    store = store_of(config, tokenizer, data)
    with ExitStack() as stack:
        stack.enter_context(output_lock(store.folder, wait=True))
        if store.folder.exists():
            if (problem := store.problem()) is None:
                logger.info("%s: C* was tokenised before", store.folder)
                return store
            logger.warning("%s: tokenised again, because %s", store.folder, problem)
        staging = stack.enter_context(replacing_folder(store.folder, TOKENS, "tokens"))
        write(staging, _encoded(config, tokenizer), index)
    return store


def _encoded(config: FinetuneConfig, tokenizer: Any) -> Iterator[Examples]:
    """The examples of all texts, in batches, in the order of the files."""
    if config.reader == "streamed":
        yield from _encoded_on_ray(config)
        return
    encoder = ExampleEncoder(tokenizer, config.sequence_length, tools_of(config.data))
    for path in files_of(config.data):
        for rows in read_texts(path):
            yield encoder.rows(rows, config.column)


def _encoded_on_ray(config: FinetuneConfig) -> Iterator[Examples]:
    """The examples of all texts of C*, in batches, in the order of the files."""
    tasks = [partial(_encode, config, *group) for group in parquet_row_groups(config.data)]
    for table in in_order(tasks, batch_size=None):
        yield from map(examples_of, table.to_batches())


def _encode(config: FinetuneConfig, path: Path, row_group: int) -> Iterator[pa.Table]:
    encoder = _encoder(config)
    for rows in read_texts(path, row_group):
        yield table_of(encoder.rows(rows, config.column))


@lru_cache(maxsize=1)
def _encoder(config: FinetuneConfig) -> ExampleEncoder:
    from tools_service.base.checkpoints import load_tokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a task has one CPU
    tokenizer = load_tokenizer(config.model.path, "model.path")
    return ExampleEncoder(tokenizer, config.sequence_length, tools_of(config.data))
