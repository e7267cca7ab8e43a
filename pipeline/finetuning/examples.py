"""C* → training examples: what fine-tuning sees, in which order (paper section 4.1, Appendix B).

In: the folder that merge wrote and a tokenizer. Out: token sequences split into a training part and a
held-out part, and for every optimizer step the examples of every worker. All of it is a function of the
data, the seed and the sizes alone: no state is kept, so a resumed run finds the rest of its data by the
number of the step.

One text is one example: [BOS] x* [EOS], cut at `sequence_length`, padded on the right within its
micro-batch, never packed with another (docs/decisions/0005). Calls are tokenised apart from the text around
them, as they are where a call is sampled or made (docs/method.md), so the text's tokens are those it has
without its calls.

Not here: the model, the optimizer (training.py), Ray (finetuning.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.syntax.calls import split_calls
from pipeline.syntax.tokenizer import CallTokens, tokenize_continuations
from tools_service.base.errors import ConfigurationError

IGNORED = -100
"""Label of a padded position: torch's cross entropy leaves it out."""

Indices = NDArray[np.int64]

_CHUNK = 1_000  # texts tokenised at once


@dataclass(frozen=True, slots=True)
class Examples:
    """Token sequences, flat: sequence i is tokens[offsets[i]:offsets[i + 1]]."""

    text_ids: Indices  # [n]
    tokens: NDArray[np.int32]  # [all tokens]
    offsets: Indices  # [n + 1]
    truncated: int
    """How many were longer than the sequence length."""

    def __len__(self) -> int:
        return len(self.text_ids)

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> Indices:
        return np.diff(self.offsets)

    def predictions(self, indices: Indices) -> int:
        """Tokens with a prediction: all but the first of each example."""
        return int(np.maximum(self.lengths[indices] - 1, 0).sum())


@dataclass(frozen=True, slots=True)
class Split:
    """The examples trained on and those kept apart."""

    train: Examples
    held_out: Examples
    twins: int
    """Texts in neither part: they equal a held-out text, which training must not see."""

    def counts(self) -> dict[str, int]:
        """What the manifest says: the first three add up to the texts read."""
        return {
            "trained_on": len(self.train),
            "held_out": len(self.held_out),
            "equal_to_held_out": self.twins,
            "truncated": self.train.truncated + self.held_out.truncated,
            "tokens_per_epoch": len(self.train.tokens),
        }


@dataclass(frozen=True, slots=True)
class Order:
    """Which examples every step trains on: seeded permutations of all of them, one after the other."""

    examples: int
    batch_size: int
    seed: int

    def batch(self, step: int) -> Indices:
        """The examples of one optimizer step, counted from 0: [batch_size]."""
        first = step * self.batch_size
        epoch, start = divmod(first, self.examples)
        stream = np.concatenate([_permutation(self.examples, self.seed, epoch + e) for e in range(2)])
        return stream[start : start + self.batch_size]


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> Indices:
    return np.random.default_rng((seed, 1, epoch)).permutation(size)


def micro_batches(indices: Indices, lengths: Indices, workers: int, micro_batch_size: int) -> Indices:
    """Deal a batch out, [accumulation, workers, micro_batch_size]; neighbours in length go together."""
    by_length = indices[np.argsort(lengths[indices], kind="stable")]
    return by_length.reshape(-1, workers, micro_batch_size)


def pad(sequences: Sequence[NDArray[np.int32]]) -> tuple[Indices, Indices]:
    """Token ids and labels, both [B, T], padded on the right; labels[b, t] is the token that t predicts."""
    width = max(2, *map(len, sequences))
    ids = np.zeros((len(sequences), width), dtype=np.int64)
    labels = np.full((len(sequences), width), IGNORED, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        labels[row, : len(sequence) - 1] = sequence[1:]
    return ids, labels


def count_texts(folder: Path) -> int:
    """Rows of C*, from the files' footers."""
    return sum(pq.read_metadata(path).num_rows for path in _files(folder))


def digest(folder: Path) -> str:
    """Identifies the content of C*: a run goes on only with the data it began with."""
    state = hashlib.blake2b(digest_size=16)
    for path in _files(folder):
        with path.open("rb") as file:
            state.update(hashlib.file_digest(file, "blake2b").digest())
    return state.hexdigest()


def load_examples(
    folder: Path,
    column: Literal["text", "plain"],
    tokenizer: Any,
    *,
    sequence_length: int,
    held_out: int,
    seed: int,
) -> Split:
    """Read C*, keep `held_out` texts apart and tokenise both parts."""
    rows = _read(folder)
    plain: list[str] = rows["plain"].to_pylist()
    train, kept_apart = choose_held_out(plain, held_out, seed, folder)

    def part(indices: Indices) -> Examples:
        chosen = rows.take(pa.array(indices))
        return encode(tokenizer, chosen["text_id"].to_numpy(), chosen[column].to_pylist(), sequence_length)

    return Split(part(train), part(kept_apart), twins=len(plain) - len(train) - len(kept_apart))


def choose_held_out(plain: Sequence[str], held_out: int, seed: int, folder: Path) -> tuple[Indices, Indices]:
    """Indices to train on and to keep apart, chosen without regard to the calls; no text is on both sides."""
    apart: dict[str, int] = {}
    for index in np.random.default_rng((seed, 0)).permutation(len(plain)):
        if len(apart) == held_out:
            break
        apart.setdefault(plain[index], int(index))
    train = np.array([i for i, text in enumerate(plain) if text not in apart], dtype=np.int64)
    if len(apart) < held_out or not len(train):
        raise ConfigurationError(
            f"{folder}: {len(plain)} texts, {len(set(plain))} of them distinct, leave none to train on when "
            f"held_out = {held_out} are kept apart: lower held_out, or merge more annotations"
        )
    return train, np.fromiter(apart.values(), dtype=np.int64)


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise ConfigurationError(
            f"{folder}: no Parquet files here; fine-tuning reads the folder that merge wrote"
        )
    return files


def _read(folder: Path) -> pa.Table:
    """All rows in the order of their ids, whatever the files' order."""
    wanted = ["text_id", "text", "plain"]
    source = pads.dataset([str(path) for path in _files(folder)], format="parquet")
    if missing := [name for name in wanted if name not in source.schema.names]:
        raise ConfigurationError(
            f"{folder}: columns {missing} are missing (there are {source.schema.names}): merge writes them"
        )
    rows = source.to_table(columns=wanted).sort_by("text_id")
    for name in wanted:
        if rows[name].null_count:
            raise ConfigurationError(f"{folder}: {rows[name].null_count} rows have no {name}")
    return rows.cast(
        pa.schema([("text_id", pa.int64()), ("text", pa.large_string()), ("plain", pa.large_string())])
    )


def encode(tokenizer: Any, text_ids: Indices, texts: Sequence[str], sequence_length: int) -> Examples:
    """Tokenise texts (with or without calls in them) and cut them to `sequence_length`."""
    sequences = [
        sequence
        for start in range(0, len(texts), _CHUNK)
        for sequence in _sequences(tokenizer, texts[start : start + _CHUNK])
    ]
    lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    kept = [sequence[:sequence_length] for sequence in sequences]
    return Examples(
        text_ids=text_ids,
        tokens=np.concatenate(kept).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(np.minimum(lengths, sequence_length))]),
        truncated=int((lengths > sequence_length).sum()),
    )


def _sequences(tokenizer: Any, texts: Sequence[str]) -> list[Indices]:
    """[BOS], the pieces of each text with its calls apart, [EOS], uncut."""
    pieces = [split_calls(text) for text in texts]
    tokens = iter(tokenize_continuations(tokenizer, [piece for parts in pieces for piece in parts]))
    bos = np.array(CallTokens.of(tokenizer).bos, dtype=np.int64)
    eos = np.array([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id], dtype=np.int64)
    return [np.concatenate([bos, *(next(tokens).ids for _ in parts), eos]) for parts in pieces]
