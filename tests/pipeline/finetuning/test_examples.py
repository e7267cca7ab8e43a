"""What fine-tuning sees, and in which order."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bench.fixtures.small_models import TOKENIZERS, byte_level, tokenizer
from pipeline.finetuning.augmented_files import digest, read_index
from pipeline.finetuning.batches import EpochSampler
from pipeline.finetuning.examples import choose_held_out, choose_uses, load_examples
from pipeline.syntax.tokenizer import CallTokens, decode_continuations, tokenize_continuations
from tests.pipeline.finetuning.data import configuration, encode, flat, rows, write
from tools_service.base.errors import ConfigurationError
from tools_service.syntax.calls import API

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
        assert flat(getattr(a, part)) == flat(getattr(b, part))
        assert getattr(plain, part).lengths.sum() < getattr(a, part).lengths.sum()
    assert sorted([*a.train.text_ids, *a.held_out.text_ids]) == sorted(row["text_id"] for row in made)
    assert a.counts() == {
        "trained_on": 24,
        "held_out": 6,
        "equal_to_held_out": 0,
        "truncated": 0,
        "tokens_per_epoch": len(flat(a.train)),
    }
    other = load_examples(configuration(tmp_path, data=one, **sizes | {"seed": 4}), words)
    assert set(other.held_out.text_ids) != set(a.held_out.text_ids)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), st.integers(1, 6), st.integers(0, 5))
def test_no_held_out_text_is_trained_on(texts: list[str], held_out: int, seed: int) -> None:
    numbers = np.unique(texts, return_inverse=True)[1]
    if held_out >= len(set(texts)):
        with pytest.raises(ConfigurationError, match="held_out"):
            choose_held_out(numbers, held_out, seed, HERE)
        return
    train, apart = choose_held_out(numbers, held_out, seed, HERE)
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


def rewrite(folder: Path, **columns: Any) -> None:
    """The second file, with other columns. None removes one."""
    file = folder / "part-00001.parquet"
    table = pq.read_table(file)
    for name, values in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        if values is not None:
            table = table.append_column(name, values)
    pq.write_table(table, file)


def bytes_as_text(*values: bytes) -> pa.Array:
    """Strings that are not UTF-8."""
    offsets = pa.array(np.cumsum([0, *map(len, values)]), pa.int32())
    buffers = [None, offsets.buffers()[1], pa.py_buffer(b"".join(values))]
    return pa.StringArray.from_buffers(len(values), *buffers[1:])


GOOD = [b"A good text."] * 9
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file cut": (lambda folder: os.truncate(folder / "part-00001.parquet", 500), "part-00001"),
    "an empty file": (lambda folder: os.truncate(folder / "part-00001.parquet", 0), "part-00001"),
    "a file of text": (lambda folder: (folder / "notes.parquet").write_text("dear diary"), "notes.parquet"),
    "a folder with the name of a file": (lambda folder: (folder / "x.parquet").mkdir(), "x.parquet"),
    "a link to nowhere": (lambda folder: (folder / "x.parquet").symlink_to("nowhere"), "x.parquet"),
    "no files": (lambda folder: [path.unlink() for path in folder.glob("*.parquet")], "no Parquet files"),
    "a file is missing": (lambda folder: (folder / "part-00001.parquet").unlink(), "manifest.json says 30"),
    "a file twice": (
        lambda folder: shutil.copy(folder / "part-00001.parquet", folder / "copy.parquet"),
        "occurs twice",
    ),
    "no column": (lambda folder: rewrite(folder, plain=None), "part-00001.*columns .'plain'. are missing"),
    "columns of something else": (
        lambda folder: pq.write_table(pa.table({"text_id": [1], "text": ["a"]}), folder / "x.parquet"),
        "x.parquet: columns",
    ),
    "ids as text": (lambda folder: rewrite(folder, text_id=[list("abcdefghij")]), "text_id is string"),
    "ids as fractions": (lambda folder: rewrite(folder, text_id=[[0.5] * 10]), "text_id is double"),
    "ids beyond 63 bits": (
        lambda folder: rewrite(folder, text_id=[pa.array([2**64 - 1 - i for i in range(10)], pa.uint64())]),
        "part-00001",
    ),
    "texts as numbers": (lambda folder: rewrite(folder, text=[list(range(10))]), "text is int64"),
    "texts as bytes": (lambda folder: rewrite(folder, text=[[b"a"] * 10]), "text is binary"),
    "texts as lists": (lambda folder: rewrite(folder, plain=[[["a"]] * 10]), "plain is list"),
    "no id": (lambda folder: rewrite(folder, text_id=[[*range(9), None]]), "1 rows have no text_id"),
    "no text": (lambda folder: rewrite(folder, text=[["a"] * 9 + [None]]), "1 rows have no text"),
    "no plain text": (lambda folder: rewrite(folder, plain=[pa.nulls(10, pa.string())]), "10 rows have no"),
    "empty text": (
        lambda folder: rewrite(folder, text=[["a"] * 9 + [""]]),
        "the text of text_id .* is empty",
    ),
    "blank text": (lambda folder: rewrite(folder, text=[["a"] * 9 + [" \n\u3000"]]), "the text of text_id"),
    "empty plain text": (lambda folder: rewrite(folder, plain=[["a"] * 9 + [""]]), "the plain of text_id"),
    "lone surrogate": (
        lambda folder: rewrite(folder, text=[bytes_as_text(*GOOD, b"a \xed\xa0\x80 b")]),
        "part-00001",
    ),
    "half a character": (
        lambda folder: rewrite(folder, plain=[bytes_as_text(*GOOD, b"a \xe2\x82")]),
        "part-00001",
    ),
    "Latin-1": (lambda folder: rewrite(folder, text=[bytes_as_text(*GOOD, b"caf\xe9")]), "part-00001"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_c_star_is_named(tmp_path: Path, damage: str) -> None:
    folder = write(tmp_path / "augmented", [rows(20), rows(30)[20:]])
    (folder / "manifest.json").write_text('{"texts": 30}')
    config = configuration(tmp_path, data=folder)
    assert len(choose_uses(read_index(folder).plain, config).train) == 25
    act, named = DAMAGE[damage]
    act(folder)
    for read in (lambda: read_index(folder), lambda: load_examples(config, tokenizer("pieces"))):
        with pytest.raises(ConfigurationError, match=named) as caught:
            read()
        assert str(folder) in str(caught.value)
        assert str(caught.value).count("\n") < 3


@pytest.mark.parametrize(
    "text", ["a\0b \0", "\ufffd", "\U0010ffff tail", "a\r\n\x1b[31m b", "\u202eabc", "[" * 99]
)
def test_unusual_characters_are_text(tmp_path: Path, text: str) -> None:
    made = rows(29)
    made.append({"text_id": 5, "text": text, "plain": text, "tool_names": ["Calculator"]})
    config = configuration(tmp_path, data=write(tmp_path / "augmented", [made]))
    split = load_examples(config, tokenizer("bytes"))
    assert len(split.train) + len(split.held_out) == 30


@pytest.mark.parametrize("distinct", [2, 5, 6, 7, 12])
@pytest.mark.parametrize("batch_size", [8, 16, 64])
@pytest.mark.parametrize("held_out", [1, 5])
def test_a_step_is_a_whole_batch_or_the_run_is_refused(
    tmp_path: Path, distinct: int, batch_size: int, held_out: int
) -> None:
    """72 rows of few distinct texts: those that equal a held-out text are not trained on."""
    base = rows(distinct)
    made = [base[i % distinct] | {"text_id": i} for i in range(72)]
    folder = write(tmp_path / "augmented", [made])
    sizes = {"held_out": held_out, "batch_size": batch_size, "seed": 1}
    config = configuration(tmp_path, data=folder, **sizes)
    plain = np.arange(72) % distinct
    if distinct <= held_out or 72 * (distinct - held_out) // distinct < batch_size:
        with pytest.raises(ConfigurationError, match=r"held_out = .*(batch_size|lower held_out)"):
            choose_uses(read_index(folder).plain, config)
        return
    uses = choose_uses(read_index(folder).plain, config)
    split = load_examples(config, tokenizer("pieces"))
    assert split.train.text_ids.tolist() == uses.train.tolist()
    assert split.held_out.text_ids.tolist() == uses.held_out.tolist()
    assert sum(split.counts()[name] for name in ("trained_on", "held_out", "equal_to_held_out")) == 72
    assert not set(plain[uses.train]) & set(plain[uses.held_out])
    for step in range(40):
        assert len(EpochSampler(len(split.train), batch_size, 1).batch(step)) == batch_size


def test_an_example_without_a_token_to_predict_is_named(tmp_path: Path) -> None:
    made = rows(30)
    made[3] |= {"text": "a", "plain": "a"}
    words = byte_level([" a"])
    words.eos_token = None
    config = configuration(tmp_path, data=write(tmp_path / "augmented", [made]))
    with pytest.raises(ConfigurationError, match=f"text_id {made[3]['text_id']} has fewer than two tokens"):
        load_examples(config, words)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sequence_length", 1),
        ("sequence_length", 0),
        ("sequence_length", -1),
        ("batch_size", 0),
        ("micro_batch_size", 0),
        ("micro_batch_size", 16),
        ("workers", 0),
        ("workers", 3),
        ("held_out", 0),
        ("max_steps", 0),
        ("evaluate_every", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("warmup_share", 1.5),
        ("warmup_share", float("nan")),
        ("zero_stage", 4),
        ("max_failures", -1),
        ("cpus_per_worker", 0),
        ("seed", -1),
    ],
)
def test_a_size_out_of_range_is_named(tmp_path: Path, field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        configuration(tmp_path, **{field: value})


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    made = rows(4)
    same = [digest(write(tmp_path / name, [made])) for name in ("a", "b")]
    assert same[0] == same[1] != digest(write(tmp_path / "c", [made[:3]]))


def test_the_digest_never_changes(tmp_path: Path) -> None:
    """Unfinished and finished runs hold it. From b2sum: of each file, then of these digests, 16 bytes."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.parquet").write_text(name)
    assert digest(tmp_path) == "f0747740a2b51eabb9be55c2b9483efe"
