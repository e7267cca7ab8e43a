"""The batches: which examples each worker has in a step, and their arrays."""

from __future__ import annotations

from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.fixtures.small_models import tokenizer
from pipeline.finetuning.data.batches import (
    IGNORED,
    PADDING,
    EpochSampler,
    IndexedBatches,
    StepBatch,
    micro_batches,
)
from pipeline.finetuning.data.examples import Examples
from pipeline.finetuning.data.streaming import step_of, table_of_step
from pipeline.syntax.tokenizer import decode_continuations
from tests.pipeline.finetuning.inputs import configuration, encode, load_examples, rows, write

pytestmark = pytest.mark.unit


@given(st.integers(3, 40), st.integers(1, 3), st.integers(0, 3))
def test_every_epoch_has_every_example_once_and_a_step_needs_no_history(
    examples: int, batch_size: int, seed: int
) -> None:
    sampler = EpochSampler(examples, batch_size, seed)
    stream = np.concatenate([sampler.batch(step) for step in range(3 * examples // batch_size + 1)])
    for epoch in range(3 * examples // batch_size * batch_size // examples):
        assert sorted(stream[epoch * examples : (epoch + 1) * examples]) == list(range(examples))
    assert (
        EpochSampler(examples, batch_size, seed).batch(2).tolist()
        == stream[2 * batch_size : 3 * batch_size].tolist()
    )


def test_epochs_and_seeds_differ() -> None:
    assert EpochSampler(50, 50, 0).batch(0).tolist() != EpochSampler(50, 50, 0).batch(1).tolist()
    assert EpochSampler(50, 50, 0).batch(0).tolist() != EpochSampler(50, 50, 1).batch(0).tolist()


def test_a_batch_is_dealt_out_whole_with_neighbours_in_length_together() -> None:
    lengths = np.array([9, 2, 7, 4, 8, 1, 3, 6, 5, 30, 40, 50, 60])
    deals = micro_batches(np.arange(12), lengths, workers=2, micro_batch_size=3)
    assert deals.shape == (2, 2, 3)
    assert sorted(deals.ravel().tolist()) == list(range(12))
    assert lengths[deals].tolist() == [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [30, 40, 50]]]


def reference(examples: Examples, config: Any, rank: int) -> Any:
    """The steps of one worker without packing, from an endless list of examples."""
    order = (
        index
        for epoch in count()
        for index in np.random.default_rng((config.seed, 1, epoch)).permutation(len(examples)).tolist()
    )
    while True:
        batch = sorted(islice(order, config.batch_size), key=lambda index: len(examples[index]))
        per_forward = config.workers * config.micro_batch_size
        forwards = [batch[start : start + per_forward] for start in range(0, len(batch), per_forward)]
        start = rank * config.micro_batch_size
        own = [forward[start : start + config.micro_batch_size] for forward in forwards]
        yield [[examples[index].tolist() for index in forward] for forward in own]


def sequences(batch: StepBatch) -> list[list[list[int]]]:
    """The examples of each forward, taken out of the arrays again; the labels must be the next tokens."""
    forwards = []
    for rows_ in batch.micro_batches:
        found = []
        for row, text_ids in enumerate(rows_.text_ids):
            for number in range(len(text_ids)):
                if rows_.segments is None:
                    # The last token of an example is the one behind its last label.
                    end = 1 + int(np.flatnonzero(rows_.labels[row] != IGNORED)[-1])
                    places = np.arange(end + 1)
                else:
                    places = np.flatnonzero(rows_.segments[row] == number)
                ids = rows_.ids[row, places]
                assert rows_.labels[row, places].tolist() == [*ids[1:], IGNORED][: len(places)]
                found.append(ids.tolist())
        forwards.append(found)
    return forwards


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 5])
def test_all_readers_have_the_batches_of_the_plain_procedure(tmp_path: Path, workers: int, seed: int) -> None:
    """Over four epochs, with batches that reach into the next one."""
    write(tmp_path / "augmented", [rows(25)])
    sizes = {"workers": workers, "batch_size": 6 * workers, "micro_batch_size": 2, "seed": seed}
    config = configuration(tmp_path, held_out=4, **sizes)
    packed = config.model_copy(update={"packing": True})
    examples = load_examples(config, tokenizer("pieces")).train
    of_all: dict[bool, list[list[list[int]]]] = {False: [], True: []}
    steps = 4 * len(examples) // config.batch_size + 1
    for rank in range(workers):
        plain = reference(examples, config, rank)
        indexed, packing = (IndexedBatches(examples, c, rank) for c in (config, packed))
        for step in range(1, steps + 1):
            batch = indexed.batch(step)
            assert sequences(batch) == next(plain), "indexed and the plain procedure"
            for batches in (indexed, packing):
                number, streamed = step_of(table_of_step(step, batches.rows(step), examples), batches.config)
                assert number == step
                assert_equal(streamed, batches.batch(step))
                own = [ids for forward in sequences(streamed) for ids in forward]
                of_all[batches.config.packing].append(own if rank == 0 else [])
                if rank:
                    of_all[batches.config.packing][step - 1] += own
    for step in range(steps):
        assert sorted(of_all[True][step]) == sorted(of_all[False][step]), "packed: the same examples a step"


def assert_equal(batch: StepBatch, expected: StepBatch) -> None:
    assert batch.predicted_tokens == expected.predicted_tokens
    assert len(batch.micro_batches) == len(expected.micro_batches)
    for rows_, other in zip(batch.micro_batches, expected.micro_batches, strict=True):
        assert rows_.text_ids == other.text_ids
        for name in ("ids", "labels", "segments"):
            value, wanted = getattr(rows_, name), getattr(other, name)
            assert (value is None) == (wanted is None)
            assert value is None or value.tolist() == wanted.tolist()


def test_padding_carries_no_label(tmp_path: Path) -> None:
    words = tokenizer("pieces")
    texts = ["A bee.", "The bakery sold 48 rolls on Monday and 67 on Tuesday."]
    config = configuration(tmp_path, workers=1, batch_size=2, micro_batch_size=2, sequence_length=64)
    for packing, width in ((False, None), (True, 64)):
        examples = encode(words, np.arange(2), texts, 64)
        batches = IndexedBatches(examples, config.model_copy(update={"packing": packing}), 0)
        [rows_] = batches.batch(1).micro_batches
        short, long = sorted(len(examples[index]) for index in range(2))
        assert (rows_.labels != IGNORED).sum() == short + long - 2
        if width:
            assert rows_.ids.shape == (1, short + long)
            assert rows_.segments is not None
            assert (rows_.segments != PADDING).all()
        else:
            assert rows_.ids.shape == (2, long)
            assert (rows_.labels[0, short - 1 :] == IGNORED).all()


@pytest.mark.parametrize("packing", [False, True])
def test_masked_results_have_no_label_and_do_not_count(tmp_path: Path, packing: bool) -> None:
    words = tokenizer("pieces")
    plain = ["It rained. That makes 5 rolls.", "So it is 7 rolls, and no more."]
    texts = [
        "It rained. That makes [Calculator(2 + 3) -> 5] 5 rolls.",
        "So it is [Calculator(3 + 4) -> 7] 7 rolls, and no more.",
    ]
    base = {"workers": 1, "batch_size": 2, "micro_batch_size": 2, "held_out": 1, "packing": packing}
    examples = encode(words, np.arange(2), texts, 64, plain=plain)
    labels = {}
    for masked in (False, True):
        config = configuration(tmp_path, mask_results=masked, **base)
        batches = IndexedBatches(examples.with_results_masked(masked), config, 0)
        batch = batches.batch(1)
        labels[masked] = np.concatenate([rows_.labels.ravel() for rows_ in batch.micro_batches])
        assert batch.predicted_tokens == (labels[masked] != IGNORED).sum()
    gone = labels[False][labels[False] != labels[True]]
    # What a tool writes: the result with its space, and the bracket.
    [written] = decode_continuations(words, [gone.tolist()])
    assert written in (" 5] 7]", " 7] 5]")
