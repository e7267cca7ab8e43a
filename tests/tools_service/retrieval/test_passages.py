"""How articles are cut into passages, and the file that holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tools_service.retrieval.passages import Passage, PassageStore, encode_passage, split_text

pytestmark = pytest.mark.unit


def test_passages_are_about_a_hundred_words_end_with_sentences_and_lose_nothing() -> None:
    text = " ".join(f"word{n}." if n % 13 == 12 else f"word{n}" for n in range(1_000))
    pieces = list(split_text(text))
    assert " ".join(pieces) == text
    assert all(100 <= len(piece.split()) <= 150 for piece in pieces[:-1])
    assert all(piece.endswith(".") for piece in pieces[:-1])


def test_short_texts_are_one_passage_and_a_stub_joins_its_neighbour() -> None:
    assert list(split_text("a few words")) == ["a few words"]
    assert [len(piece.split()) for piece in split_text("word " * 125)] == [125]
    assert [len(piece.split()) for piece in split_text("word " * 170)] == [170]
    assert [len(piece.split()) for piece in split_text("word " * 400)] == [150, 150, 100]


def test_a_store_gives_passages_back_by_number(tmp_path: Path) -> None:
    passages = [Passage("Écluse", "水門 is the word."), Passage("Half", "a \ud800 pair"), Passage("T", "")]
    pieces = [encode_passage(one) for one in passages]
    (tmp_path / "passages.bin").write_bytes(b"".join(pieces))
    np.save(tmp_path / "passages.npy", np.cumsum([0, *map(len, pieces)]))
    store = PassageStore(tmp_path)
    assert [store[n] for n in range(len(store))] == [passages[0], Passage("Half", "a ? pair"), passages[2]]
    for beyond in (-1, 3):
        with pytest.raises(IndexError, match=f"passage {beyond} of 3"):
            store[beyond]
