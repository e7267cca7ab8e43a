"""A text that grows: nothing is handed out that a later token changes or a stop string removes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pipeline.inference.text_stream import TextStream
from pipeline.syntax.tokenizer import decode_continuations, tokenize_continuations
from tests.pipeline.scripted import tokenizer

pytestmark = pytest.mark.unit

KINDS = ["bytes", "words", "merging", "metaspace"]
TEXTS = [
    " so it is 27 + 4.",
    " दिन กิน 你好 🙂🙂 e\u0301",
    "\n\n  two spaces  \t and",
    " ]]>[->]",
    "",
    " \ufffd and \ufffd.",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_what_is_handed_out_adds_up_to_the_text(kind: str, text: str) -> None:
    [tokenized] = tokenize_continuations(tokenizer(kind), [text])
    tokens = tokenized.ids.tolist()

    def decode(ids: object) -> str:
        return decode_continuations(tokenizer(kind), [list(ids)])[0]  # type: ignore[call-overload]

    whole, stream, parts = decode(tokens), TextStream(decode), []
    for token in tokens:
        assert stream.push(token) is None
        parts.append(stream.hand_out())
        assert whole.startswith("".join(parts))
    parts.append(stream.hand_out_until(len(whole), whole))
    assert "".join(parts) == whole


def _pushed(text: str, stop: tuple[str, ...], sizes: list[int]) -> tuple[int | None, str]:
    """Where a stop string began, and what was handed out, for tokens of so many characters."""
    pieces = dict(enumerate(_cut(text, sizes)))
    stream, out = TextStream(lambda ids: "".join(pieces[index] for index in ids), stop), ""
    for index in pieces:
        if (end := stream.push(index)) is not None:
            return end, out + stream.hand_out_until(end, stream.text)
        out += stream.hand_out()
    return None, out


def _cut(text: str, sizes: list[int]) -> list[str]:
    pieces = []
    for size in sizes:
        pieces.append(text[:size])
        text = text[size:]
    return [piece for piece in [*pieces, text] if piece]


@pytest.mark.parametrize(
    ("text", "stop", "end"),
    [
        ("one. Q: two", ("Q:",), 5),
        ("one. Q: two", ("two", "Q:"), 5),
        ("aaab", ("aab",), 1),
        ("ab ab abc", ("abc",), 6),
        ("Q: at once", ("Q:",), 0),
        ("nothing", ("Q:", "nothinG"), None),
        ("ends with Q", ("Q:",), None),
        ("two\n\nlines", ("\n\n",), 3),
    ],
)
def test_a_stop_string_is_found_however_tokens_cut_it(text: str, stop: tuple[str, ...], end: int) -> None:
    rng = random.Random(text)
    for _ in range(30):
        sizes = [rng.randint(1, 4) for _ in text]
        found, out = _pushed(text, stop, sizes)
        if end is None:
            assert found is None
            assert text.startswith(out)
            continue
        assert found == end
        assert out == text[:end]


def test_a_long_stop_string_is_compared_with_what_is_held_back_only() -> None:
    class Counted(str):
        slices = 0

        def __getitem__(self, key: Any) -> str:
            Counted.slices += 1
            return super().__getitem__(key)

    stream = TextStream(lambda tokens: "".join(map(chr, tokens)), (Counted("never" * 10_000),))
    for character in " so it is":
        stream.push(ord(character))
        assert stream.hand_out() == character
    assert Counted.slices < 100
