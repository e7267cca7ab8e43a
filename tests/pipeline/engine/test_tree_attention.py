"""Rows of a tree's tensors are dropped and admitted, and every text keeps its own usage."""

from __future__ import annotations

import numpy as np
import pytest

from bench.fixtures.small_models import language_model
from pipeline.engine.model import LanguageModel
from pipeline.engine.prefill import PrefilledBatch
from pipeline.engine.usage import Usage
from tools_service.syntax.prompts import PromptTemplate

pytestmark = pytest.mark.unit

PROMPT = PromptTemplate("Calculator", "Add calls. [Calculator(1 + 2)]\n\nInput:", "\nOutput:")


def prefilled(model: LanguageModel, texts: int) -> tuple[PrefilledBatch, list[Usage]]:
    """A prefilled batch of equal texts, branched at position 1 of each."""
    usage = [Usage() for _ in range(texts)]
    ids = [np.arange(5, 11) for _ in range(texts)]
    batch = PrefilledBatch(model, model.prompt(PROMPT), ids, usage)
    batch.branch(np.arange(texts), np.ones(texts, dtype=np.int64))
    return batch, usage


def step(batch: PrefilledBatch, texts: list[int]) -> None:
    """Feed one token to each of these texts."""
    first = np.zeros(len(texts), dtype=np.int64)
    batch.extend(np.array(texts), first, first, np.full(len(texts), 7))


def test_a_dropped_text_is_charged_for_nothing_after_others_are_admitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The active row stands behind as many rows as are left after admission."""
    share = "pipeline.engine.tree_attention._COMPACT_SHARE"
    model = language_model("llama", "bytes")
    batch, usage = prefilled(model, 4)
    other, other_usage = prefilled(model, 1)
    monkeypatch.setattr(share, 99.0)
    step(batch, [1, 2, 3])  # text 0 is dropped
    monkeypatch.setattr(share, 0.0)
    step(batch, [3])  # texts 1 and 2 have ended, their rows are still there
    batch.admit(other)
    assert batch.row_of_text.tolist() == [-1, -1, -1, 0, 1]
    texts = (*usage, *other_usage)
    before = [text["decode"].tokens for text in texts]
    counted = model.usage["decode"].tokens
    step(batch, [3, 4])
    step(batch, [4])
    charged = [text["decode"].tokens - tokens for text, tokens in zip(texts, before, strict=True)]
    assert charged == [0, 0, 0, 1, 2]
    assert model.usage["decode"].tokens - counted == sum(charged)


def test_texts_are_admitted_while_more_rows_have_ended_than_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the joined batch are fewer than those of the batch before."""
    model = language_model("llama", "bytes")
    batch, usage = prefilled(model, 4)
    other, other_usage = prefilled(model, 1)
    monkeypatch.setattr("pipeline.engine.tree_attention._COMPACT_SHARE", 0.0)
    step(batch, [3])  # texts 0 to 2 have ended, their rows are still there
    batch.admit(other)
    assert batch.row_of_text.tolist() == [-1, -1, -1, 0, 1]
    before = [text["decode"].tokens for text in (*usage, *other_usage)]
    step(batch, [3, 4])
    charged = [text["decode"].tokens for text in (*usage, *other_usage)]
    assert [now - then for now, then in zip(charged, before, strict=True)] == [0, 0, 0, 1, 1]
