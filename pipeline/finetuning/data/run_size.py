"""What a run will see, before it begins: examples, tokens, epochs, padding.

In: the configuration, and the index of C*. Out: the one description of it, which `finetune` logs before its
first step and `finetune --dry-run` shows. Tokens are counted in the token store of the run; where there is
none yet, they are estimated from a sample, or from all texts if these are few.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.data.augmented_files import (
    Indices,
    TextIndex,
    digest,
    files_of,
    read_texts,
    tools_of,
)
from pipeline.finetuning.data.batches import EpochSampler, rows_of_batch
from pipeline.finetuning.data.examples import ExampleEncoder, Examples, Uses, choose_uses, concatenate
from pipeline.finetuning.data.token_store import store_of
from tools_service.base.checkpoints import load_tokenizer

_SAMPLE = 5_000  # texts
_SIMULATED_STEPS = 200


@dataclass(frozen=True, slots=True)
class Padding:
    """What the model computes in a step."""

    positions: float  # tokens and padding, over all workers
    slowest: float  # of these, those of the slowest worker in each forward: the others wait for it
    padding: float  # share of the positions
    forwards: float  # of each worker


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Of the texts to train on. `exact`: whether all of them were counted, and not a sample."""

    exact: bool
    truncated: int  # texts that are cut
    per_epoch: int
    predicted: int  # per epoch: those that count in the loss
    unpacked: Padding
    packed: Padding


@dataclass(frozen=True, slots=True)
class RunSize:
    """The size of a run."""

    config: FinetuneConfig
    trained_on: int
    held_out: int
    equal_to_held_out: int
    by_tool: dict[str, int]  # texts to train on with a call of each tool; "" counts those without a call
    tokens: TokenCount | None  # None: not counted

    @property
    def epochs(self) -> float:
        """Passes over the texts to train on."""
        return self.config.max_steps * self.config.batch_size / self.trained_on

    def lines(self) -> list[tuple[str, str]]:
        """The description: names, each with a text."""
        config = self.config
        lines = [
            (
                "texts",
                f"{self.trained_on:,} to train on, {self.held_out:,} held out, "
                f"{self.equal_to_held_out:,} equal to those",
            )
        ]
        if self.by_tool and config.column == "text":
            calls = [f"{tool} in {texts:,}" for tool, texts in self.by_tool.items() if tool]
            lines.append(("calls", ", ".join([*calls, f"none in {self.by_tool.get('', 0):,}"])))
        steps = f"{config.max_steps:,} steps of {config.batch_size:,} texts of {config.column!r}"
        lines.append(("epochs", f"{steps} are {self.epochs:.2f} epochs"))
        if self.tokens is not None:
            lines += self._of_tokens(self.tokens)
        return lines

    def _of_tokens(self, tokens: TokenCount) -> list[tuple[str, str]]:
        about = "" if tokens.exact else "about "
        seen, predicted = self.epochs * tokens.per_epoch, self.epochs * tokens.predicted
        cut = f"{tokens.truncated:,} texts are cut at {self.config.sequence_length:,}"
        return [
            (
                "tokens",
                f"{about}{tokens.per_epoch:,} an epoch, {seen:,.0f} in all steps, {predicted:,.0f} of them "
                f"count in the loss; {cut}",
            ),
            ("padding", f"{about}{self._padding(tokens)}"),
        ]

    def _padding(self, tokens: TokenCount) -> str:
        used, other, word = tokens.unpacked, tokens.packed, "with"
        if self.config.packing:
            used, other, word = other, used, "without"
        return (
            f"{used.padding:.1%} of {used.positions:,.0f} positions a step, {used.forwards:.1f} forwards of "
            f"each worker; {word} packing {other.padding:.1%} of {other.positions:,.0f}, {other.forwards:.1f}"
        )


def run_size(
    config: FinetuneConfig,
    index: TextIndex,
    train: Examples | None = None,
    *,
    count_tokens: bool = True,
) -> RunSize:
    """`train` are the examples to train on, if they are at hand.

    Raises ConfigurationError for too few texts, and for a tokenizer that cannot be loaded; without
    `count_tokens` none is.
    """
    uses = choose_uses(index.plain, config)
    tokens = None
    if train is not None:
        tokens = _count(config, train, len(train))
    elif count_tokens:
        tokens = _count(config, _train(config, index, uses), len(uses.train))
    return RunSize(
        config=config,
        trained_on=len(uses.train),
        held_out=len(uses.held_out),
        equal_to_held_out=len(index) - len(uses.train) - len(uses.held_out),
        by_tool=index.by_tool(uses.train),
        tokens=tokens,
    )


def _count(config: FinetuneConfig, train: Examples, of: int) -> TokenCount:
    """`train` are some of `of` examples."""
    scale = of / len(train)
    return TokenCount(
        exact=of == len(train),
        truncated=round(scale * train.truncated),
        per_epoch=round(scale * int(train.lengths.sum())),
        predicted=round(scale * train.predicted_tokens(np.arange(len(train)))),
        unpacked=padding(train.lengths, config.model_copy(update={"packing": False})),
        packed=padding(train.lengths, config.model_copy(update={"packing": True})),
    )


def _train(config: FinetuneConfig, index: TextIndex, uses: Uses) -> Examples:
    """The examples to train on: of the store, or else, tokenised here, a sample of them."""
    tokenizer = load_tokenizer(config.model.path, "model.path")
    store = store_of(config, tokenizer, digest(config.data))
    if store.folder.exists() and store.problem() is None:
        return store.split(config).train
    size = min(max(_SAMPLE, config.batch_size), len(uses.train))
    spread = np.arange(size) * len(uses.train) // size
    wanted = index.text_ids[uses.train[spread]]
    encoder = ExampleEncoder(tokenizer, config.sequence_length, tools_of(config.data))
    batches = []
    for path in files_of(config.data):
        for rows in read_texts(path):
            selected = rows.filter(np.isin(rows["text_id"].to_numpy(), wanted))
            if len(selected):
                batches.append(encoder.rows(selected, config.column))
    return concatenate(batches).with_results_masked(config.mask_results)


def padding(lengths: Indices, config: FinetuneConfig) -> Padding:
    """What the first steps compute, on average; `lengths` are those of the examples."""
    sampler = EpochSampler(len(lengths), config.batch_size, config.seed)
    steps = min(config.max_steps, _SIMULATED_STEPS)
    positions = slowest = tokens = forwards = 0
    for step in range(steps):
        batch = sampler.batch(step)
        by_forward = rows_of_batch(batch, lengths, config)
        forwards += len(by_forward)
        tokens += int(lengths[batch].sum())
        for of_workers in by_forward:
            computed = [len(rows) * max(int(lengths[row].sum()) for row in rows) for rows in of_workers]
            positions += sum(computed)
            slowest += max(computed)
    return Padding(positions / steps, slowest / steps, 1.0 - tokens / positions, forwards / steps)
