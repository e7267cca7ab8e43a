"""A text of C* is taken apart into what it was made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.exporting.augmented_text import ExportError, WrittenCall, parts_of
from tests.pipeline.augmentation.test_merge import call
from tools_service.syntax.calls import insert_calls, linearise

pytestmark = pytest.mark.unit

TEXT = st.text("ab [](QA)->\n", min_size=1, max_size=30)
PLACES = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from(["QA", "MT"]), st.sampled_from(["x", "a) (b"]))
)


@given(TEXT, PLACES)
def test_the_pieces_make_both_texts(plain: str, places: list[tuple[int, str, str]]) -> None:
    calls = [call(tool, min(at, len(plain)), 1.0, argument, "r (s)") for at, tool, argument in places]
    augmented = insert_calls(plain, calls)
    parts = parts_of(augmented, plain, ())
    written = [
        part if isinstance(part, str) else linearise(part.tool, part.input, part.result) for part in parts
    ]
    assert "".join(written) == " " + augmented
    assert "".join(part for part in parts if isinstance(part, str)) == " " + plain
    inserted = [(one.tool, one.input, one.result) for one in sorted(calls, key=lambda one: one.position)]
    found = [(part.tool, part.input, part.result) for part in parts if isinstance(part, WrittenCall)]
    assert found == inserted


def test_call_syntax_of_the_text_itself_stays_text() -> None:
    plain = "see [QA(x) -> y] here"
    augmented = "see [QA(x) -> y] [MT(hier) -> here] here"
    assert parts_of(augmented, plain, ()) == [
        " see",
        " [QA(x) -> y]",
        WrittenCall("MT", "hier", "here"),
        " here",
    ]


def test_tools_of_others_are_calls() -> None:
    call = WrittenCall("Units", "3 km", "1.86 miles")
    assert parts_of("a [Units(3 km) -> 1.86 miles] b", "a b", ("Units",)) == [" a", call, " b"]


@pytest.mark.parametrize(
    ("text", "plain"), [("a b", "a c"), ("a", "a b"), ("a [QA(x)] b", "a b"), ("a [QA(x->y) -> z]", "a")]
)
def test_another_text_is_an_error(text: str, plain: str) -> None:
    with pytest.raises(ExportError):
        parts_of(text, plain, ())
