"""Documents become passages: contiguous, within the limit, as long as possible, never cut within a word."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from bench.fixtures.small_models import TEXT, TOKENIZERS, tokenizer
from pipeline.corpus import passages
from pipeline.corpus.passages import TextPassage, split_passages
from pipeline.syntax.tokenizer import load_tokenizer, tokenize_continuations

pytestmark = pytest.mark.unit


def words(text: str) -> int:
    """A tokenizer of one token per word."""
    return len(text.split())


def texts(document: str, max_tokens: int) -> list[str]:
    return [passage.text for passage in split_passages(document, words, max_tokens)]


def test_a_document_that_fits_is_one_passage_stripped_at_its_ends() -> None:
    document = "\n  One two.\n\n\tThree  four. \n"
    assert list(split_passages(document, words, 4)) == [TextPassage(3, "One two.\n\n\tThree  four.")]


def test_paragraphs_are_packed_while_they_fit() -> None:
    assert texts("a b c\nd e\nf g h i\nj", 5) == ["a b c\nd e", "f g h i\nj"]


def test_a_long_paragraph_is_cut_after_a_sentence() -> None:
    document = 'One two three. Four "five six." Seven eight nine ten? Eleven.'
    assert texts(document, 6) == ['One two three. Four "five six."', "Seven eight nine ten? Eleven."]


def test_the_rest_of_a_long_paragraph_takes_the_next_ones_along() -> None:
    assert texts("a b c. d e.\nf\ng h i", 4) == ["a b c.", "d e.\nf", "g h i"]


def test_a_long_sentence_is_cut_between_words() -> None:
    assert texts("a b c d e f g. h", 3) == ["a b c", "d e f", "g. h"]


def test_a_decimal_point_is_no_end_of_a_sentence() -> None:
    assert texts("it is 3.5 long. then more", 4) == ["it is 3.5 long.", "then more"]


def test_sentences_without_spaces_between_them() -> None:
    passages = split_passages("你好世界。我们走吧！再见", len, 6)
    assert [passage.text for passage in passages] == ["你好世界。", "我们走吧！", "再见"]


def test_a_word_beyond_the_limit_has_a_problem_and_the_rest_does_not() -> None:
    passages = list(split_passages("ab cdefghij kl", len, 5))
    assert [(passage.text, passage.problem) for passage in passages] == [
        ("ab", None),
        ("cdefghij", "long word: 8 characters without a space"),
        ("kl", None),
    ]


@pytest.mark.parametrize("document", ["", " \n\t\u00a0 "])
def test_nothing_visible_gives_no_passage(document: str) -> None:
    assert texts(document, 5) == []


def test_a_long_line_is_not_counted_over_and_over() -> None:
    counted = 0

    def count(text: str) -> int:
        nonlocal counted
        counted += len(text)
        return words(text)

    document = "word " * 40_000
    assert len(list(split_passages(document, count, 100))) == 400
    assert counted < 30 * len(document)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("document", ["." * 400_000, "\n" * 400_000 + "x", "." + " " * 400_000 + "x"])
def test_long_runs_take_no_square_of_their_length(document: str) -> None:
    assert "".join(texts(document, 5)) == "".join(document.split())


DOCUMENTS = st.text(st.sampled_from("ab.!?\"' \n\n\u00a0é。"), max_size=120)


@settings(max_examples=120, deadline=None)
@given(DOCUMENTS, st.integers(1, 9))
def test_passages_are_slices_in_order_that_hold_everything_visible(document: str, limit: int) -> None:
    end = 0
    for passage in split_passages(document, len, limit):
        assert document[passage.start :].startswith(passage.text)
        assert passage.text == passage.text.strip() != ""
        assert not document[end : passage.start].strip()
        end = passage.start + len(passage.text)
        assert (len(passage.text) > limit) == (passage.problem is not None)
    assert not document[end:].strip()


@settings(max_examples=120, deadline=None)
@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), max_size=12), st.integers(1, 12))
def test_no_passage_could_have_taken_the_next_word(paragraphs: list[list[int]], limit: int) -> None:
    """Cut where it is good to cut, but only because the rest of the unit did not fit."""
    document = "\n".join(" ".join("a" * length for length in words) for words in paragraphs)
    passages = [passage for passage in split_passages(document, len, limit) if passage.problem is None]
    for passage in passages:
        after = document[passage.start + len(passage.text) :]
        if after.startswith("\n"):  # a whole number of paragraphs: the next one would have been too much
            with_next = passage.text + "\n" + after[1:].partition("\n")[0]
            assert len(with_next) > limit
        elif after:  # within a paragraph: only if the paragraph did not fit from here
            assert "\n" not in passage.text
            assert len(passage.text + after.partition("\n")[0]) > limit
            assert len(passage.text + " " + after.split()[0]) > limit


# counting slices from one tokenization: the reference is the same function without `starts`

LLAMA_3 = (  # punctuation takes the line breaks behind it, so tokens reach over the ends of passages
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPACES = (" ", " ", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u2028", "")
WORDS = (
    *TEXT.split(),
    *(
        "7",
        "12",
        "1,200",
        "3.14",
        "...",
        "?!",
        "x=1;y=2",
        "中文。你好！再见",
        "é",
        "e\u0301",
        "🙂",
        "ab" * 40,
    ),
)
PAGES = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(SPACES)), max_size=60).map(
    lambda pairs: "".join(word + space for word, space in pairs)
)


@cache
def real_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    if kind == "demo":  # takes a run of spaces as one token: the last of them does not join the number
        return load_tokenizer("demo/models/annotator")
    if kind != "llama_3":
        return tokenizer(kind)
    inner = Tokenizer(tokenizer_models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=500, show_progress=False, initial_alphabet=alphabet)
    # "!" joins the line break before it joins "?": "?!\n" is one token, "?!" are two.
    inner.train_from_iterator([TEXT, ".\n", ".\n\n", *["!\n"] * 3, "?!\n"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner)


class Counting:
    """The two functions of a tokenizer, and the characters that each was called with."""

    def __init__(self, kind: str) -> None:
        self.tokenizer = real_tokenizer(kind)
        self.counted = self.tokenized = 0

    def count(self, text: str) -> int:
        self.counted += len(text)
        return len(self._starts(text))

    def starts(self, text: str) -> np.ndarray:
        self.tokenized += len(text)
        return self._starts(text)

    def _starts(self, text: str) -> np.ndarray:
        return tokenize_continuations(self.tokenizer, [" " + text])[0].starts


@pytest.mark.parametrize("window", [40, 32 * 2**10])
@pytest.mark.parametrize("kind", [*TOKENIZERS, "llama_3", "demo"])
def test_one_tokenization_gives_the_passages_of_a_count_for_each_slice(
    kind: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passages, "_WINDOW_CHARACTERS", window)
    words = Counting(kind)

    @settings(max_examples=25, deadline=None)
    @given(PAGES, st.sampled_from([1, 2, 7, 30]))
    def agree(page: str, max_tokens: int) -> None:
        fast = list(split_passages(page, words.count, max_tokens, words.starts))
        assert fast == list(split_passages(page, words.count, max_tokens))

    agree()


@pytest.mark.parametrize(
    "page",
    [
        "It was x   12 and y   34.\n" * 9,  # three spaces and a number: two tokens here, another one there
        "Two sums.\n\nThree sums?!\nFour.\n" * 9,
        "中文。你好！再见。" * 6,
        ("ab" * 40 + "\n") * 5,
    ],
)
@pytest.mark.parametrize("kind", [*TOKENIZERS, "llama_3", "demo"])
def test_seams_at_which_tokens_differ(page: str, kind: str) -> None:
    words = Counting(kind)
    for max_tokens in (1, 2, 3, 6, 8, 11, 20, 55):
        fast = list(split_passages(page, words.count, max_tokens, words.starts))
        assert fast == list(split_passages(page, words.count, max_tokens))


def test_a_document_is_tokenized_about_once() -> None:
    words = Counting("bytes")
    document = ("The bakery sold 48 rolls on Monday. It was opened in 1998. " * 3 + "\n") * 400
    assert len(list(split_passages(document, words.count, 100, words.starts))) == 200
    assert words.tokenized < 1.2 * len(document)
    assert words.counted < 0.05 * len(document)


@pytest.mark.parametrize("document", ["word " * 60_000, "wort" * 60_000, "字" * 100_000])
def test_no_more_than_a_window_is_tokenized_at_once(document: str) -> None:
    longest = 0

    def starts(text: str) -> np.ndarray:
        nonlocal longest
        longest = max(longest, len(text))
        return np.arange(len(text) + 1)

    def count(text: str) -> int:
        return len(text) + 1

    fast = list(split_passages(document, count, 100, starts))
    assert fast == list(split_passages(document, count, 100))
    assert longest <= 32 * 2**10
