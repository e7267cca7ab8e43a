"""What fine-tuning sees, and in which order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bench.fixtures.small_models import TOKENIZERS, byte_level, tokenizer
from pipeline.base.config import ExportConfig
from pipeline.exporting.augmented_text import parts_of
from pipeline.exporting.formats import format_of
from pipeline.finetuning.data.augmented_files import read_index
from pipeline.finetuning.data.batches import EpochSampler
from pipeline.finetuning.data.examples import choose_held_out, choose_uses
from pipeline.syntax.tokenizer import CallTokens, decode_continuations, tokenize_continuations
from tests.pipeline.finetuning.inputs import configuration, encode, flat, load_examples, rows, write
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


MASKED = {
    "calls": (
        "It rained. [Calculator(2 + 3) -> 5] 5 rolls, [QA(Who?) -> Ada Ü 1] Ada.",
        "It rained. 5 rolls, Ada.",
    ),
    "a call at the start, an empty result": ("[Calendar() -> ] It rained.", "It rained."),
    "an arrow in the result": ("It is [QA(a) -> b -> c] b.", "It is b."),
    "call syntax of the text itself": (
        "See [QA(x) -> y] and [QA(x) -> y] [QA(Who?) -> Ada] Ada.",
        "See [QA(x) -> y] and [QA(x) -> y] Ada.",
    ),
    "a call without a result": ("It is [QA(x)] so.", "It is so."),
    "no call": ("An arrow -> and a [bracket].", "An arrow -> and a [bracket]."),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("case", MASKED)
def test_results_are_marked_where_export_labels_them(kind: str, case: str) -> None:
    words, (text, plain) = tokenizer(kind), MASKED[case]
    examples = encode(words, np.arange(1), [text], 256, plain=[plain])
    expected = [] if "without a result" in case else results_of(text, plain)
    masked = examples.with_results_masked(True).masked(0)
    # Runs of marked tokens, one per result.
    edges = np.flatnonzero(np.diff(np.concatenate([[0], masked.astype(int), [0]])))
    spelt = decode_continuations(words, [examples[0][a:b].tolist() for a, b in edges.reshape(-1, 2)])
    unknown = decode_continuations(words, [ids_of(kind, result) for result in expected])  # of a Unigram
    assert spelt == unknown
    assert examples.results.tolist() == [masked.sum()]
    assert not examples.masked(0).any()
    cut = encode(words, np.arange(1), [text], 14, plain=[plain])
    assert cut.results.tolist() == [masked[:14].sum()]


def results_of(text: str, plain: str) -> list[str]:
    """What the command export labels false."""
    config = ExportConfig(mask_results=True)
    row = format_of(config, {}).row(0, parts_of(text, plain, ()))
    return [segment["text"] for segment in row["segments"] if not segment["label"]]


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
