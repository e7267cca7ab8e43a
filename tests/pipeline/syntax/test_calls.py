"""Writing, reading, inserting and removing calls; tokens of the markers under four kinds of tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from bench.fixtures.small_models import TOKENIZERS, byte_level, tokenizer
from pipeline.syntax.calls import CallError, Malformed, insert_calls, linearise, parse_call, remove_calls
from pipeline.syntax.tokenizer import CallTokens, TokenizerError, decode_continuations, tokenize_continuations
from tools_service.tools.contract import TOOL_NAMES, ToolName

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Placed:
    tool: ToolName
    position: int
    input: str
    result: str


def test_a_call_is_written_as_the_paper_writes_it() -> None:
    assert linearise("Calculator", "27 + 4") == " [Calculator(27 + 4)]"
    assert linearise("Calculator", "27 + 4", "31") == " [Calculator(27 + 4) -> 31]"
    assert linearise("Calendar", "", "Today is Monday.") == " [Calendar() -> Today is Monday.]"


@pytest.mark.parametrize(
    ("argument", "result"),
    [("a]", None), ("[a", None), ("a\nb", None), ("a -> b", None), ("a->b", "c"), ("a", "[b"), ("a", "b\r")],
)
def test_what_would_break_the_syntax_is_not_written(argument: str, result: str | None) -> None:
    with pytest.raises(CallError, match="QA"):
        linearise("QA", argument, result)


@pytest.mark.parametrize(
    ("drawn", "read"),
    [
        ("Calculator(1 + 2)]", "1 + 2"),
        ("Calculator( 1 + 2 )] and on, [Calculator(3)]", "1 + 2"),
        ("Calculator((1 + 2) * 3)].", "(1 + 2) * 3"),
        ("Calculator(1 + 2) -> 3]", Malformed("arrow")),
        ("Calculator(1 -> 2)]", Malformed("arrow")),
        ("Calculator 1 + 2]", Malformed("wrong_tool")),
        ("calculator(1)]", Malformed("wrong_tool")),
        ("QA(1 + 2)]", Malformed("wrong_tool")),
        ("]", Malformed("wrong_tool")),
        ("Calculator(1 + 2]", Malformed("no_parenthesis")),
        ("Calculator(]", Malformed("no_parenthesis")),
        ("Calculator()]", Malformed("empty_input")),
        ("Calculator(  )]", Malformed("empty_input")),
        ("Calculator(1\n)]", Malformed("newline")),
        ("Calculator(1\x0b)]", Malformed("control_character")),
        ("Calculator(1 [2)]", Malformed("bracket")),
        ("Calculator(1\ufffd)]", Malformed("broken_character")),
        ("Calculator(1 + 2", Malformed("too_long")),
        ("Calcul", Malformed("too_long")),
        ("", Malformed("too_long")),
        ("Calx", Malformed("wrong_tool")),
    ],
)
def test_a_draw_is_a_call_or_says_why_not(drawn: str, read: str | Malformed) -> None:
    assert parse_call(drawn, "Calculator") == read


def test_the_calendar_takes_no_input_and_the_others_need_one() -> None:
    assert parse_call("Calendar()]", "Calendar") == ""
    assert parse_call("Calendar(today)]", "Calendar") == Malformed("input_not_empty")
    assert parse_call("Calendar(tod", "Calendar") == Malformed("input_not_empty")
    assert parse_call("MT()]", "MT") == Malformed("empty_input")


def test_calls_go_in_front_of_the_leading_space_and_behind_nothing() -> None:
    text = "Out of 20, 5 left."
    calls = [Placed("Calculator", 10, "20 / 4", "5"), Placed("Calendar", 0, "", "Monday")]
    assert insert_calls(text, calls) == "[Calendar() -> Monday] Out of 20, [Calculator(20 / 4) -> 5] 5 left."
    assert insert_calls(text, [Placed("QA", 18, "x", "y")]) == "Out of 20, 5 left. [QA(x) -> y]"
    assert insert_calls("", [Placed("QA", 0, "x", "y")]) == "[QA(x) -> y] "


PLAIN = st.text(
    st.characters(exclude_characters="[]", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12
)
PARTS = [*"ab é中\n[]()", " [", "[Calculator(1) -> 2]", " [QA(x)]", "->"]
ANY = st.lists(st.sampled_from(PARTS), max_size=8).map("".join)


@st.composite
def texts_with_calls(draw: st.DrawFn, text: st.SearchStrategy[str]) -> tuple[str, list[Placed]]:
    x = draw(text)
    place = st.one_of(st.integers(0, len(x)), st.just(0), st.just(len(x)))
    argument = PLAIN.filter(lambda part: "->" not in part)
    call = st.builds(Placed, st.sampled_from(TOOL_NAMES), place, argument, PLAIN)
    return x, draw(st.lists(call, max_size=5))


@settings(max_examples=60, deadline=None)
@given(texts_with_calls(ANY))
def test_removing_what_was_inserted_gives_the_text_back_even_if_it_looks_like_calls(
    case: tuple[str, list[Placed]],
) -> None:
    text, calls = case
    assert remove_calls(insert_calls(text, calls), calls) == text


@settings(max_examples=60, deadline=None)
@given(texts_with_calls(PLAIN))
def test_without_the_calls_removal_is_exact_for_texts_that_contain_none(
    case: tuple[str, list[Placed]],
) -> None:
    text, calls = case
    assert remove_calls(insert_calls(text, calls)) == text


def test_text_that_only_resembles_a_call_stays() -> None:
    text = "[1] see [Note(2)] and x[Calculator(1)] or [Calculator 3]"
    assert remove_calls(text) == text
    assert remove_calls("As [QA(a) -> b] said [QA(c)] so") == "As said so"


def test_removal_refuses_calls_that_are_not_there() -> None:
    call = Placed("QA", 3, "x", "y")
    with pytest.raises(CallError, match="position 3"):
        remove_calls("a text without it", [call])
    with pytest.raises(CallError, match="outside"):
        insert_calls("ab", [call])


STRINGS = [" The 48 rolls", " [Calculator(48 + 67)]", "\nOutput:", " é“x”", "  two", " \nline", " 中"]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_continuation_is_what_stands_behind_something_else(kind: str) -> None:
    words = tokenizer(kind)
    for string, pieces in zip(STRINGS, tokenize_continuations(words, STRINGS), strict=True):
        whole = words("days" + string, add_special_tokens=False).input_ids
        assert whole[-len(pieces.ids) :] == pieces.ids.tolist()
        if string.isascii() or kind != "words":  # which has no other letters
            assert decode_continuations(words, [pieces.ids.tolist()]) == [string]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_token_starts_where_the_one_before_it_ends(kind: str) -> None:
    words, string = tokenizer(kind), " The rolls, é“x” sold"
    [pieces] = tokenize_continuations(words, [string])
    assert pieces.starts[0] == 0
    assert string.index(" sold") in pieces.starts
    assert string.index("sold") not in pieces.starts
    whole = [start for start in pieces.starts if start >= 0]
    assert whole == sorted(set(whole))


def test_bytes_of_a_character_are_no_positions() -> None:
    [pieces] = tokenize_continuations(tokenizer("bytes"), [" 中文"])
    assert pieces.starts.tolist() == [0, 1, -1, -1, 2, -1, -1]


def test_trimmed_offsets_still_give_the_space_to_the_word() -> None:
    trimmed = byte_level([" ["], trim_offsets=True)
    [pieces] = tokenize_continuations(trimmed, [" The rolls"])
    assert (
        pieces.starts.tolist()
        == tokenize_continuations(tokenizer("bytes"), [" The rolls"])[0].starts.tolist()
    )


def test_special_tokens_spelt_in_a_text_are_plain_text() -> None:
    words = tokenizer("pieces")
    [pieces] = tokenize_continuations(words, [" a </s> b <s>"])
    assert not set(pieces.ids.tolist()) & set(words.all_special_ids)
    assert decode_continuations(words, [pieces.ids.tolist()]) == [" a </s> b <s>"]


@pytest.mark.parametrize(
    ("kind", "api", "bos"),
    [
        ("bytes", [" ["], False),
        ("split_marker", [" ", "["], False),
        ("pieces", [" ["], True),
        ("words", [" ["], True),
    ],
)
def test_markers_are_found_for_every_kind_of_tokenizer(kind: str, api: list[str], bos: bool) -> None:
    words = tokenizer(kind)
    call_tokens = CallTokens.of(words)
    assert [call_tokens.token_strings[token] for token in call_tokens.api] == api
    assert call_tokens.bos == ((words.bos_token_id,) if bos else ())


def test_marker_merged_with_its_neighbours_is_still_seen() -> None:
    """In GPT-2's vocabulary `)]` is one token and ` ]` is not `]`: the end is looked for in strings, not
    among ids."""
    call_tokens = CallTokens.of(tokenizer("bytes"))
    assert {")]", "].", "]"} <= {piece for piece in call_tokens.token_strings if "]" in piece}


def test_a_tokenizer_that_cannot_carry_calls_is_refused() -> None:
    inner = Tokenizer(tokenizer_models.WordLevel({"<unk>": 0, "a": 1, "[": 2}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(TokenizerError, match="would not survive"):
        CallTokens.of(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>"))


def test_a_tokenizer_that_changes_letters_is_refused() -> None:
    inner = tokenizer("words").backend_tokenizer
    lower = Tokenizer.from_str(inner.to_str())
    lower.normalizer = normalizers.Lowercase()
    with pytest.raises(TokenizerError, match="would not survive"):
        CallTokens.of(PreTrainedTokenizerFast(tokenizer_object=lower, unk_token="<unk>"))


def test_a_tokenizer_that_merges_the_marker_with_a_name_is_refused() -> None:
    sticky = byte_level([" [Calculator"] * 9, pre_split=False)
    with pytest.raises(TokenizerError, match="no ids of its own"):
        CallTokens.of(sticky)


def test_positions_of_pieces_are_int64_arrays() -> None:
    [pieces] = tokenize_continuations(tokenizer("words"), [" a"])
    assert pieces.ids.dtype == np.int64
    assert pieces.starts.dtype == np.int64
