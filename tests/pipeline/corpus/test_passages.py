"""Documents become passages: contiguous, within the limit, as long as possible, never cut within a word."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.passages import TextPassage, split_passages

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
