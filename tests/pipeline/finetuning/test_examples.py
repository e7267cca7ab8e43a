"""What fine-tuning sees, and in which order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.fixtures.small_models import TOKENIZERS, tokenizer
from pipeline.finetuning.examples import (
    IGNORED,
    EpochSampler,
    choose_held_out,
    count_texts,
    digest,
    encode,
    load_examples,
    micro_batches,
    pad,
)
from pipeline.syntax.calls import API
from pipeline.syntax.tokenizer import CallTokens, decode_continuations, tokenize_continuations
from tests.pipeline.finetuning.data import configuration, rows, write
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit

HERE = Path("augmented")
PLAIN = "The bakery sold 48 rolls on Monday and 67 on Tuesday, 115 in both days."
CALLS = "The bakery sold 48 rolls on Monday and 67 on Tuesday, [Calculator(48 + 67) -> 115] 115 in both days."


def ids_of(kind: str, string: str) -> list[int]:
    return tokenize_continuations(tokenizer(kind), [string])[0].ids.tolist()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_calls_are_tokenised_as_they_are_made_and_the_text_as_without_them(kind: str) -> None:
    words = tokenizer(kind)
    call, (before, after) = " [Calculator(48 + 67) -> 115]", PLAIN.split(" 115")
    bos, eos = CallTokens.of(words).bos, (words.eos_token_id,)
    with_call, without = encode(words, np.arange(2), [CALLS, PLAIN], 256)
    assert with_call.tolist() == [
        *bos,
        *ids_of(kind, " " + before),
        *ids_of(kind, call),
        *ids_of(kind, " 115" + after),
        *eos,
    ]
    assert without.tolist() == [*bos, *ids_of(kind, " " + PLAIN), *eos]
    api = CallTokens.of(words).api
    assert ids_of(kind, call)[: len(api)] == ids_of(kind, API)
    size = len(ids_of(kind, call))
    start = len(bos) + len(ids_of(kind, " " + before))
    assert np.delete(with_call, slice(start, start + size)).tolist() == without.tolist()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_examples_spell_their_texts(kind: str) -> None:
    words = tokenizer(kind)
    first = "[Calendar() -> Today is Monday, January 30, 2023.] The bakery sold 48 rolls."
    example = encode(words, np.arange(1), [first], 256)[0].tolist()
    start = len(CallTokens.of(words).bos)
    assert decode_continuations(words, [example[start:-1]]) == [" " + first]


def test_long_texts_are_cut_and_counted() -> None:
    words = tokenizer("pieces")
    examples = encode(words, np.array([3, 4]), [PLAIN, "A bee."], 12)
    assert examples.truncated == 1
    assert examples.lengths.tolist()[0] == 12
    assert examples[0].tolist() == encode(words, np.arange(1), [PLAIN], 512)[0].tolist()[:12]
    assert examples[1][-1] == words.eos_token_id


def test_the_split_depends_on_neither_files_nor_column(tmp_path: Path) -> None:
    made = rows(30)
    one = write(tmp_path / "one", [made])
    many = write(tmp_path / "many", [made[20:], [], made[:7], made[7:20]])
    words = tokenizer("pieces")
    sizes = {"sequence_length": 128, "held_out": 6, "seed": 3}
    a = load_examples(configuration(tmp_path, data=one, **sizes), words)
    b = load_examples(configuration(tmp_path, data=many, **sizes), words)
    plain = load_examples(configuration(tmp_path, data=many, column="plain", **sizes), words)
    for part in ("train", "held_out"):
        ids = getattr(a, part).text_ids.tolist()
        assert ids == getattr(b, part).text_ids.tolist() == getattr(plain, part).text_ids.tolist()
        assert getattr(a, part).tokens.tolist() == getattr(b, part).tokens.tolist()
        assert getattr(plain, part).lengths.sum() < getattr(a, part).lengths.sum()
    assert sorted([*a.train.text_ids, *a.held_out.text_ids]) == sorted(row["text_id"] for row in made)
    assert a.counts() == {
        "trained_on": 24,
        "held_out": 6,
        "equal_to_held_out": 0,
        "truncated": 0,
        "tokens_per_epoch": len(a.train.tokens),
    }
    other = load_examples(configuration(tmp_path, data=one, **sizes | {"seed": 4}), words)
    assert set(other.held_out.text_ids) != set(a.held_out.text_ids)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), st.integers(1, 6), st.integers(0, 5))
def test_no_held_out_text_is_trained_on(texts: list[str], held_out: int, seed: int) -> None:
    if held_out >= len(set(texts)):
        with pytest.raises(ConfigurationError, match="held_out"):
            choose_held_out(texts, held_out, seed, HERE)
        return
    train, apart = choose_held_out(texts, held_out, seed, HERE)
    held = {texts[i] for i in apart}
    assert len(apart) == len(held) == held_out
    assert [texts[i] for i in train] == [text for text in texts if text not in held]


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


def test_padding_carries_no_label() -> None:
    ids, labels = pad([np.array([5, 6, 7], dtype=np.int32), np.array([8], dtype=np.int32)])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert labels.tolist() == [[6, 7, IGNORED], [IGNORED] * 3]


def test_a_folder_that_merge_did_not_write_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="merge"):
        count_texts(tmp_path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text_id": [1], "text": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(ConfigurationError, match="plain"):
        load_examples(configuration(tmp_path, data=tmp_path), tokenizer("pieces"))


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    made = rows(4)
    same = [digest(write(tmp_path / name, [made])) for name in ("a", "b")]
    assert same[0] == same[1] != digest(write(tmp_path / "c", [made[:3]]))


def test_the_digest_never_changes(tmp_path: Path) -> None:
    """Unfinished and finished runs hold it. From b2sum: of each file, then of these digests, 16 bytes."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.parquet").write_text(name)
    assert digest(tmp_path) == "f0747740a2b51eabb9be55c2b9483efe"
