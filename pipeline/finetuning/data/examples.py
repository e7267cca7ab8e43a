"""C* → training examples: what fine-tuning sees (paper section 4.1, Appendix B).

In: the texts of C* (augmented_files.py) and a tokenizer. Out: token sequences, split into training and
held-out examples. All of this depends only on the data, the seed and the sizes. batches.py has the
examples of every step, token_store.py keeps the tokens.

One text is one example: [BOS] x* [EOS], cut at `sequence_length`. Calls are tokenised apart from the text
around them, so the text keeps the tokens it has without calls (docs/method.md). What tools have written,
the result and the bracket after it, is marked, as the command `export` does. This module knows no model
and no Ray.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.data.augmented_files import Indices
from pipeline.syntax.tokenizer import CallTokens, tokenize_continuations
from tools_service.base.errors import ConfigurationError
from tools_service.syntax.calls import API, END, split_calls, split_result

Tokens = NDArray[np.int32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Examples:
    """n token sequences in flat arrays of M tokens: sequence i is tokens[starts[i] : starts[i] + lengths[i]].

    The flat arrays may be files that are mapped into memory, and hold other sequences, too.
    """

    text_ids: Indices  # [n]
    tokens: Tokens  # [M]
    is_result: Flags  # [M]: tokens that a tool has written
    starts: Indices  # [n]
    lengths: Indices  # [n]
    results: Indices  # [n]: result tokens with a prediction
    cut: Flags  # [n]: whether the text was longer than the sequence length
    mask_results: bool = False  # whether result tokens are left out of the loss

    def __len__(self) -> int:
        return len(self.text_ids)

    def __getitem__(self, index: int) -> Tokens:
        return self.tokens[self.starts[index] : self.starts[index] + self.lengths[index]]

    def masked(self, index: int) -> Flags:
        """The tokens of an example that do not count in the loss, beside its first."""
        if not self.mask_results:
            return np.zeros(self.lengths[index], dtype=bool)
        return self.is_result[self.starts[index] : self.starts[index] + self.lengths[index]]

    @property
    def truncated(self) -> int:
        """Number of sequences that were cut at the sequence length."""
        return int(self.cut.sum())

    def take(self, indices: Indices) -> Examples:
        """These examples, in this order; the flat arrays are shared."""
        fields = ("text_ids", "starts", "lengths", "results", "cut")
        return replace(self, **{name: getattr(self, name)[indices] for name in fields})

    def with_results_masked(self, masked: bool) -> Examples:
        """The same examples, with or without the results in the loss."""
        return replace(self, mask_results=masked)

    def predicted_tokens(self, indices: Indices) -> int:
        """Number of tokens whose prediction counts: all but the first of each example, and those masked."""
        predicted = np.maximum(self.lengths[indices] - 1, 0)
        return int((predicted - self.results[indices] if self.mask_results else predicted).sum())


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
            "tokens_per_epoch": int(self.train.lengths.sum()),
        }


def split(examples: Examples, uses: Uses, config: FinetuneConfig) -> Split:
    """Divide the examples of all texts, sorted by id. ConfigurationError if one has nothing to predict."""
    examples = examples.with_results_masked(config.mask_results)
    train, held_out = examples.take(uses.train), examples.take(uses.held_out)
    for part in (train, held_out):
        if short := part.text_ids[part.lengths < 2].tolist():
            raise ConfigurationError(
                f"{config.data}: text_id {short[0]} has fewer than two tokens, so there is nothing to predict"
            )
    return Split(train, held_out, len(examples) - len(train) - len(held_out))


@dataclass(frozen=True, slots=True)
class Uses:
    """Indices of the texts to train on and of those to hold out, among all texts sorted by id."""

    train: Indices
    held_out: Indices


def choose_uses(plain: Indices, config: FinetuneConfig) -> Uses:
    """What each text is used for; `plain` is that of a TextIndex.

    Raises ConfigurationError if too few texts are left to train on.
    """
    train, held_out = choose_held_out(plain, config.held_out, config.seed, config.data)
    # Otherwise a step would hold less than a batch, and DeepSpeed would take fewer optimizer steps.
    if len(train) < config.batch_size:
        raise ConfigurationError(
            f"{config.data}: {len(plain)} texts leave {len(train)} to train on with held_out = "
            f"{config.held_out}, fewer than batch_size = {config.batch_size}: lower one of them, or merge "
            "more annotations"
        )
    return Uses(train, held_out)


def choose_held_out(plain: Indices, held_out: int, seed: int, folder: Path) -> tuple[Indices, Indices]:
    """Indices to train on and to hold out; equal numbers in `plain` [n] are equal texts without calls.

    The calls play no role; no text is in both. Raises ConfigurationError, naming `folder`, if there are
    too few distinct texts.
    """
    index_of: dict[int, int] = {}  # by held-out text
    for index in np.random.default_rng((seed, 0)).permutation(len(plain)):
        if len(index_of) == held_out:
            break
        index_of.setdefault(int(plain[index]), int(index))
    train = np.flatnonzero(~np.isin(plain, list(index_of)))
    if len(index_of) < held_out or not len(train):
        raise ConfigurationError(
            f"{folder}: {len(plain)} texts, {len(np.unique(plain))} of them distinct, leave none to train on "
            f"with held_out = {held_out}: lower held_out, or merge more annotations"
        )
    return train, np.fromiter(index_of.values(), dtype=np.int64)


class ExampleEncoder:
    """Texts → examples, for one tokenizer and sequence length."""

    def __init__(self, tokenizer: Any, sequence_length: int, tools: Collection[str]) -> None:
        """`tools` are those, beside the installed ones, whose calls the texts may have."""
        self.tokenizer, self.sequence_length, self.tools = tokenizer, sequence_length, tuple(tools)
        self.bos = np.array(CallTokens.of(tokenizer).bos, dtype=np.int64)
        eos = tokenizer.eos_token_id
        self.eos = np.array([] if eos is None else [eos], dtype=np.int64)

    def rows(self, rows: pa.Table, column: str) -> Examples:
        """The examples of a batch of `read_texts`, from one of its columns."""
        plain = rows["plain"].to_pylist()
        texts = rows[column].to_pylist()
        return self.batch(rows["text_id"].to_numpy(), texts, plain)

    def batch(self, text_ids: Indices, texts: Sequence[str], plain: Sequence[str]) -> Examples:
        """The examples [BOS] text [EOS] of texts, cut. `plain` are the same texts without calls."""
        parts = [list(self._parts(text, without)) for text, without in zip(texts, plain, strict=True)]
        segments = [segment for of_text in parts for segment, _ in of_text]
        tokenized = iter(tokenize_continuations(self.tokenizer, segments))
        sequences, flags = [], []
        for of_text in parts:
            ids, is_result = [self.bos], [np.zeros(len(self.bos), dtype=bool)]
            for (_, result_start), segment in zip(of_text, tokenized, strict=False):
                ids.append(segment.ids)
                # Bytes after the first of a character have no start of their own.
                starts = np.maximum.accumulate(segment.starts) if len(segment.ids) else segment.starts
                is_result.append(starts >= result_start)
            sequences.append(np.concatenate([*ids, self.eos]))
            flags.append(np.concatenate([*is_result, np.zeros(len(self.eos), dtype=bool)]))
        return _pack(text_ids, sequences, flags, self.sequence_length)

    def _parts(self, text: str, plain: str) -> Iterator[tuple[str, float]]:
        """The text and the calls of ``" " + text``, each with the character at which a result starts.

        Call syntax that is in `plain` is text.
        """
        rest = " " + plain
        for part in split_calls(text, self.tools):
            if rest.startswith(part):
                rest = rest[len(part) :]
                yield part, np.inf
            elif part.startswith(API) and part.endswith(END):
                call, result = split_result(part)
                yield part, len(call) if result else np.inf
            else:
                yield part, np.inf


def _pack(
    text_ids: Indices, sequences: Sequence[Indices], flags: Sequence[Flags], sequence_length: int
) -> Examples:
    lengths = np.array([min(len(sequence), sequence_length) for sequence in sequences], dtype=np.int64)
    kept = [of_text[:sequence_length] for of_text in flags]
    return Examples(
        text_ids=text_ids,
        tokens=np.concatenate([ids[:sequence_length] for ids in sequences]).astype(np.int32),
        is_result=np.concatenate(kept),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        results=np.array([int(of_text[1:].sum()) for of_text in kept], dtype=np.int64),
        cut=np.array([len(sequence) > sequence_length for sequence in sequences]),
    )


def concatenate(batches: Sequence[Examples]) -> Examples:
    """One after another, in flat arrays of their own."""
    sizes = np.array([len(batch.tokens) for batch in batches], dtype=np.int64)
    offsets = np.cumsum(sizes) - sizes
    return Examples(
        text_ids=np.concatenate([batch.text_ids for batch in batches]),
        tokens=np.concatenate([batch.tokens for batch in batches]),
        is_result=np.concatenate([batch.is_result for batch in batches]),
        starts=np.concatenate(
            [batch.starts + offset for batch, offset in zip(batches, offsets, strict=True)]
        ),
        lengths=np.concatenate([batch.lengths for batch in batches]),
        results=np.concatenate([batch.results for batch in batches]),
        cut=np.concatenate([batch.cut for batch in batches]),
    )
