"""C* → training examples: what fine-tuning sees, in which order (paper section 4.1, Appendix B).

In: the folder that merge wrote and a tokenizer. Out: token sequences, split into training and
held-out examples. All of this depends only on the data, the seed and the sizes. batches.py has the
examples of every step.

One text is one example: [BOS] x* [EOS], cut at `sequence_length`, padded on the right within its
micro-batch (batches.py). Calls are tokenised apart from
the text around them, so the text keeps the tokens it has without calls (docs/method.md). This
module knows no model and no Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.storage.manifest import MANIFEST
from pipeline.syntax.tokenizer import CallTokens, tokenize_continuations
from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.fingerprint import content_digest
from tools_service.syntax.calls import split_calls

Indices = NDArray[np.int64]

_SCHEMA = pa.schema([("text_id", pa.int64()), ("text", pa.large_string()), ("plain", pa.large_string())])
_STRINGS = (pa.types.is_string, pa.types.is_large_string)
_TEXTS_PER_CALL = 1_000  # texts given to the tokenizer at once


@dataclass(frozen=True, slots=True)
class Examples:
    """Token sequences in one flat array: sequence i is tokens[offsets[i]:offsets[i + 1]]."""

    text_ids: Indices  # [n]
    tokens: NDArray[np.int32]  # [all tokens]
    offsets: Indices  # [n + 1]
    truncated: int  # number of sequences that were cut at the sequence length

    def __len__(self) -> int:
        return len(self.text_ids)

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> Indices:
        return np.diff(self.offsets)

    def predicted_tokens(self, indices: Indices) -> int:
        """Number of tokens with a prediction: all but the first of each example."""
        return int(np.maximum(self.lengths[indices] - 1, 0).sum())


@dataclass(frozen=True, slots=True)
class Split:
    """Training and held-out examples."""

    train: Examples
    held_out: Examples
    duplicates: int  # texts in neither: they equal a held-out text, which training must not see

    def counts(self) -> dict[str, int]:
        """Counts for the manifest. The first three add up to the number of texts read."""
        return {
            "trained_on": len(self.train),
            "held_out": len(self.held_out),
            "equal_to_held_out": self.duplicates,
            "truncated": self.train.truncated + self.held_out.truncated,
            "tokens_per_epoch": len(self.train.tokens),
        }


def digest(folder: Path) -> str:
    """Digest of the content of C*. Runs store it, so its value must never change."""
    digests = []
    for path in _files(folder):
        with _reading(path):
            digests.append(bytes.fromhex(content_digest(path, "blake2b")))
    return hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()


def load_examples(config: FinetuneConfig, tokenizer: Any) -> Split:
    """Read C* in `config.data`, set `config.held_out` texts aside and tokenise both parts.

    Raises ConfigurationError for a folder that merge did not write, for a text without a token to
    predict, and for too few texts.
    """
    rows, train, held_out = _split(config)
    tools = tools_of(config.data)

    def examples(indices: Indices) -> Examples:
        selected = rows.take(pa.array(indices))
        texts = selected[config.column].to_pylist()
        ids = selected["text_id"].to_numpy()
        return encode(tokenizer, ids, texts, config.sequence_length, tools)

    split = Split(examples(train), examples(held_out), rows.num_rows - len(train) - len(held_out))
    for part in (split.train, split.held_out):
        if short := part.text_ids[part.lengths < 2].tolist():
            raise ConfigurationError(
                f"{config.data}: text_id {short[0]} has fewer than two tokens, so there is nothing to predict"
            )
    return split


def count_examples(config: FinetuneConfig) -> dict[str, int]:
    """How many texts `load_examples` will use, and for what; nothing is tokenised. Raises as it does."""
    rows, train, held_out = _split(config)
    rest = rows.num_rows - len(train) - len(held_out)
    return {"trained_on": len(train), "held_out": len(held_out), "equal_to_held_out": rest}


def _split(config: FinetuneConfig) -> tuple[pa.Table, Indices, Indices]:
    """The rows of C*, and the indices of those to train on and to hold out."""
    rows = _read(config.data)
    plain: list[str] = rows["plain"].to_pylist()
    train, held_out = choose_held_out(plain, config.held_out, config.seed, config.data)
    # Otherwise a step would hold less than a batch, and DeepSpeed would take fewer optimizer steps.
    if len(train) < config.batch_size:
        raise ConfigurationError(
            f"{config.data}: {len(plain)} texts leave {len(train)} to train on with held_out = "
            f"{config.held_out}, fewer than batch_size = {config.batch_size}: lower one of them, or merge "
            "more annotations"
        )
    return rows, train, held_out


def choose_held_out(plain: Sequence[str], held_out: int, seed: int, folder: Path) -> tuple[Indices, Indices]:
    """Indices to train on and to hold out. The calls play no role; no text is in both.

    Raises ConfigurationError, naming `folder`, if there are too few distinct texts.
    """
    index_of: dict[str, int] = {}  # by held-out text
    for index in np.random.default_rng((seed, 0)).permutation(len(plain)):
        if len(index_of) == held_out:
            break
        index_of.setdefault(plain[index], int(index))
    train = np.array([i for i, text in enumerate(plain) if text not in index_of], dtype=np.int64)
    if len(index_of) < held_out or not len(train):
        raise ConfigurationError(
            f"{folder}: {len(plain)} texts, {len(set(plain))} of them distinct, leave none to train on with "
            f"held_out = {held_out}: lower held_out, or merge more annotations"
        )
    return train, np.fromiter(index_of.values(), dtype=np.int64)


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise ConfigurationError(f"{folder}: no Parquet files; fine-tuning reads the folder that merge wrote")
    return files


def _read(folder: Path) -> pa.Table:
    """All rows, sorted by id: the order of the files does not matter."""
    rows = pa.concat_tables([_read_file(path) for path in _files(folder)]).sort_by("text_id")
    ids = rows["text_id"].to_numpy()
    if len(twice := ids[1:][ids[1:] == ids[:-1]]):
        raise ConfigurationError(
            f"{folder}: text_id {twice[0]} occurs twice; remove what merge did not write"
        )
    written = _texts_of_manifest(folder / MANIFEST)
    if written is not None and written != rows.num_rows:
        raise ConfigurationError(
            f"{folder}: its files hold {rows.num_rows} texts, and its {MANIFEST} says {written}: files are "
            "missing or do not belong here; merge again"
        )
    return rows


def _read_file(path: Path) -> pa.Table:
    """The rows of one file. Raises ConfigurationError, naming it, for what merge does not write."""
    with _reading(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        if missing := [name for name in _SCHEMA.names if name not in schema.names]:
            raise ConfigurationError(
                f"{path}: columns {missing} are missing (there are {schema.names}): merge writes them"
            )
        for field in _SCHEMA:
            given = schema.field(field.name).type
            kinds = (pa.types.is_integer,) if field.name == "text_id" else _STRINGS
            if not any(is_kind(given) for is_kind in kinds):
                raise ConfigurationError(f"{path}: column {field.name} is {given} and not {field.type}")
        rows = file.read(columns=_SCHEMA.names).select(_SCHEMA.names)
        rows.validate(full=True)  # among others, that the strings are UTF-8
        rows = rows.cast(_SCHEMA)
    for name in _SCHEMA.names:
        if rows[name].null_count:
            raise ConfigurationError(f"{path}: {rows[name].null_count} rows have no {name}")
    for name in ("text", "plain"):
        blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(rows[name])), 0)
        if empty := rows["text_id"].filter(blank).to_pylist():
            raise ConfigurationError(f"{path}: the {name} of text_id {empty[0]} is empty")
    return rows


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what a damaged or unreadable file raises into a ConfigurationError that names it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise ConfigurationError(f"{path}: cannot be read; merge again: {brief(error)}") from error


def _texts_of_manifest(path: Path) -> int | None:
    """Number of rows that merge says it wrote; None if there is no such manifest."""
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))["texts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return texts if isinstance(texts, int) else None


def tools_of(folder: Path) -> list[str]:
    """The tools that merge says the texts have calls of; none if there is no such manifest."""
    try:
        return list(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["tools"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def encode(
    tokenizer: Any,
    text_ids: Indices,
    texts: Sequence[str],
    sequence_length: int,
    tools: Collection[str] = (),
) -> Examples:
    """Tokenise texts, with their calls apart, as [BOS] text [EOS]; cut them to `sequence_length`.

    `tools` are those, beside the installed ones, whose calls the texts may have.
    """
    bos = np.array(CallTokens.of(tokenizer).bos, dtype=np.int64)
    eos = np.array([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id], dtype=np.int64)
    sequences: list[Indices] = []
    for start in range(0, len(texts), _TEXTS_PER_CALL):
        segments = [split_calls(text, tools) for text in texts[start : start + _TEXTS_PER_CALL]]
        tokenized = iter(tokenize_continuations(tokenizer, list(chain.from_iterable(segments))))
        for of_text in segments:
            sequences.append(np.concatenate([bos, *(next(tokenized).ids for _ in of_text), eos]))
    cut = [sequence[:sequence_length] for sequence in sequences]
    return Examples(
        text_ids=text_ids,
        tokens=np.concatenate(cut).astype(np.int32),
        offsets=np.cumsum([0, *map(len, cut)]),
        truncated=sum(len(sequence) > sequence_length for sequence in sequences),
    )
