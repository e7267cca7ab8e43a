"""Texts and the call syntax as tokens, for four kinds of tokenizer."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from bench.fixtures.small_models import TOKENIZERS, byte_level, tokenizer
from pipeline.syntax.grammar import DEAD, automaton
from pipeline.syntax.tokenizer import (
    CallTokens,
    TokenizerError,
    decode_continuations,
    load_tokenizer,
    special_ids,
    tokenize_continuations,
)
from tools_service.base.errors import ConfigurationError

pytestmark = pytest.mark.unit

STRINGS = [" The 48 rolls", " [Calculator(48 + 67)]", "\nOutput:", " é“x”", "  two", " \nline", " 中"]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_continuation_is_what_stands_behind_something_else(kind: str) -> None:
    words = tokenizer(kind)
    for string, tokenized in zip(STRINGS, tokenize_continuations(words, STRINGS), strict=True):
        whole = words("days" + string, add_special_tokens=False).input_ids
        assert whole[-len(tokenized.ids) :] == tokenized.ids.tolist()
        if string.isascii() or kind != "words":  # which has no other letters
            assert decode_continuations(words, [tokenized.ids.tolist()]) == [string]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_token_starts_where_the_one_before_it_ends(kind: str) -> None:
    words, string = tokenizer(kind), " The rolls, é“x” sold"
    [tokenized] = tokenize_continuations(words, [string])
    assert tokenized.starts[0] == 0
    assert string.index(" sold") in tokenized.starts
    assert string.index("sold") not in tokenized.starts
    whole = [start for start in tokenized.starts if start >= 0]
    assert whole == sorted(set(whole))


def test_bytes_of_a_character_are_no_positions() -> None:
    [tokenized] = tokenize_continuations(tokenizer("bytes"), [" 中文"])
    assert tokenized.starts.tolist() == [0, 1, -1, -1, 2, -1, -1]


def test_trimmed_offsets_still_give_the_space_to_the_word() -> None:
    trimmed = byte_level([" ["], trim_offsets=True)
    [tokenized] = tokenize_continuations(trimmed, [" The rolls"])
    assert (
        tokenized.starts.tolist()
        == tokenize_continuations(tokenizer("bytes"), [" The rolls"])[0].starts.tolist()
    )


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_the_ids_are_those_of_the_tokenizer_whether_it_trims_offsets_or_not(trim_offsets: bool) -> None:
    words = byte_level([" ["], trim_offsets=trim_offsets)
    for string, tokenized in zip(STRINGS, tokenize_continuations(words, STRINGS), strict=True):
        whole = words("a" + string + "<|end|>", add_special_tokens=False, split_special_tokens=True).input_ids
        anchored = words("a" + string, add_special_tokens=False).input_ids
        assert tokenized.ids.tolist() == anchored[1:]
        [with_special] = tokenize_continuations(words, [string + "<|end|>"])
        assert with_special.ids.tolist() == whole[1:]


INDENTED = "def f(x):\n        return x\n    y = 1\n\n\n  z\t\tq\n" + "        " * 3


@cache
def indenting(trim_offsets: bool, kind: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that has runs of spaces, tabs and line breaks as tokens."""
    inner = Tokenizer(tokenizer_models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator([INDENTED] * 50, trainer)
    trimming = processors.ByteLevel(trim_offsets=trim_offsets, add_prefix_space=False)
    if kind == "sequence":  # as Llama 3's
        trimming = processors.Sequence([trimming, processors.TemplateProcessing(single="$A")])
    inner.post_processor = trimming
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.mark.parametrize("kind", ["alone", "sequence"])
@pytest.mark.parametrize(
    "string",
    [
        "        return x",
        "\n    y = 1",
        "\n\n\n  z",
        " x \n  y\t\tq",
        "  a  b   c",
        "   ",
        "\n",
        " \n \n",
        "\t\tx\n\t\ty",
        " a\r\n    b",
        "\n        é = “x”\n",
        "        中文  文",
        " 1  2   3    4",
        "x        ",
        "\n  \n    \n      x",
        " \u00a0 x",
        " \u3000x  y",
        "  \n[Calculator(1)]",
        "            return x\n\n\n",
        " if x:\n        return x\n    y = 1",
        "\n\t \t x",
    ],
)
def test_trimmed_spans_change_no_position(string: str, kind: str) -> None:
    [whole] = tokenize_continuations(indenting(False, kind), [string])
    [trimmed] = tokenize_continuations(indenting(True, kind), [string])
    assert trimmed.ids.tolist() == whole.ids.tolist()
    assert trimmed.starts.tolist() == whole.starts.tolist()
    # A start is the length of what the tokens before it decode to.
    for index, start in enumerate(trimmed.starts.tolist()):
        if start >= 0:
            [before] = decode_continuations(indenting(True, kind), [trimmed.ids[:index].tolist()])
            assert before == string[:start]


def test_tokens_that_only_the_vocabulary_calls_special_are_special() -> None:
    words = byte_level([" ["])
    words.backend_tokenizer.add_special_tokens([AddedToken("<file_sep>", special=True)])
    words.add_tokens([AddedToken("<tool>", special=False)])
    hidden, plain = words.convert_tokens_to_ids(["<file_sep>", "<tool>"])
    assert hidden not in words.all_special_ids
    assert hidden in special_ids(words)
    assert plain not in special_ids(words)
    assert set(words.all_special_ids) <= set(special_ids(words))
    strings = CallTokens.of(words).token_strings
    table = automaton("QA(", strings, special_ids(words), len(words))
    assert (table[:, hidden] == DEAD).all()
    assert table[-1, plain] != DEAD


def test_special_tokens_spelt_in_a_text_are_plain_text() -> None:
    words = tokenizer("pieces")
    [tokenized] = tokenize_continuations(words, [" a </s> b <s>"])
    assert not set(tokenized.ids.tolist()) & set(words.all_special_ids)
    assert decode_continuations(words, [tokenized.ids.tolist()]) == [" a </s> b <s>"]


@pytest.mark.parametrize(
    ("kind", "api", "bos"),
    [
        ("bytes", [" ["], False),
        ("split_marker", [" ", "["], False),
        ("pieces", [" ["], True),
        ("words", [" ["], True),
    ],
)
def test_call_tokens_are_found_for_every_kind_of_tokenizer(kind: str, api: list[str], bos: bool) -> None:
    words = tokenizer(kind)
    call_tokens = CallTokens.of(words)
    assert [call_tokens.token_strings[token] for token in call_tokens.api] == api
    assert call_tokens.bos == ((words.bos_token_id,) if bos else ())


def test_an_end_merged_with_its_neighbours_is_still_recognised() -> None:
    """In GPT-2's vocabulary `)]` is one token and ` ]` is not `]`: the end is looked for in strings, not
    among ids."""
    call_tokens = CallTokens.of(tokenizer("bytes"))
    assert {")]", "].", "]"} <= {piece for piece in call_tokens.token_strings if "]" in piece}


def test_a_tokenizer_that_cannot_carry_calls_is_refused() -> None:
    inner = Tokenizer(tokenizer_models.WordLevel({"<unk>": 0, "a": 1, "[": 2}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(TokenizerError, match="would be damaged"):
        CallTokens.of(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>"))


def test_a_tokenizer_that_changes_letters_is_refused() -> None:
    inner = tokenizer("words").backend_tokenizer
    lower = Tokenizer.from_str(inner.to_str())
    lower.normalizer = normalizers.Lowercase()
    with pytest.raises(TokenizerError, match="would be damaged"):
        CallTokens.of(PreTrainedTokenizerFast(tokenizer_object=lower, unk_token="<unk>"))


def test_a_tokenizer_that_merges_api_with_a_name_is_refused() -> None:
    sticky = byte_level([" [Calculator"] * 9, pre_split=False)
    with pytest.raises(TokenizerError, match="no ids of its own"):
        CallTokens.of(sticky)


def test_ids_and_starts_are_int64_arrays() -> None:
    [tokenized] = tokenize_continuations(tokenizer("words"), [" a"])
    assert tokenized.ids.dtype == np.int64
    assert tokenized.starts.dtype == np.int64


def test_a_tokenizer_that_cannot_be_loaded_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match=r"model\.path '.*nowhere': cannot load it"):
        load_tokenizer("/nowhere")
