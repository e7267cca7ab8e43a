"""Scores of insertions against plain forwards, in both places; what cannot be scored, and why."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.fixtures.small_models import ARCHITECTURES, TOKENIZERS, language_model
from pipeline.base.records import Candidate, Document, Text
from pipeline.engine.model import LanguageModel
from pipeline.method.execution import ExecutedCall
from pipeline.method.filtering import WEIGHTS, score_calls
from pipeline.method.insertions import Insertion, Place, ScoredInsertion, Window, score_insertions
from tests.pipeline import oracle
from tools_service.syntax.calls import linearise

pytestmark = pytest.mark.unit

TEXT = "The bakery sold 48 rolls on Monday and 67 on Tuesday, 115 in both days."
OTHER = "The bridge was opened in 1998."
CALL, RESULT = linearise("Calculator", "48 + 67"), linearise("Calculator", "48 + 67", "115")
INSERTIONS = [
    Insertion(TEXT, TEXT.index(" 115"), RESULT, CALL),
    Insertion(TEXT, TEXT.index("115"), RESULT, CALL),
    Insertion(TEXT, TEXT.index(" Tuesday"), " (Reasoning: the day after Monday.)"),
    Insertion(OTHER, OTHER.index(" 1998"), "The bridge is from 1998.", ""),
    Insertion(TEXT, TEXT.index(" both"), " ", None),
    Insertion(TEXT, TEXT.index(" sold"), RESULT, CALL),
    Insertion(TEXT, TEXT.index(" sold"), RESULT, CALL),
]


def plain(model: LanguageModel, item: Insertion, place: Place, tokens: int | None) -> dict[str, list[float]]:
    """One ordinary forward for each token and form: the log-probabilities of the scored tokens."""
    [encoded] = model.encode([item.text])
    x, bos = encoded.ids.tolist(), list(model.call_tokens.bos)
    index = max(i for i, start in enumerate(encoded.starts) if 0 <= start <= item.position)
    end = len(x) if tokens is None else min(index + tokens, len(x))
    logprobs: dict[str, list[float]] = {}
    for form, z in {"plus": item.insertion, "empty": "", "call": item.without_result}.items():
        if z is None:
            continue
        z_ids = oracle.tokens(model, z) if z else []
        logprobs[form] = []
        for j in range(index, end):
            before = [*z_ids, *x[:j]] if place == "prefix" else [*x[:index], *z_ids, *x[index:j]]
            p = oracle.probabilities(model, [*bos, *before])[x[j]]
            logprobs[form].append(float(p.log()))
    return logprobs


def assert_equal(scored: ScoredInsertion, logprobs: dict[str, list[float]], weights: np.ndarray) -> None:
    losses = {form: -float(weights[: len(values)] @ values) for form, values in logprobs.items()}
    assert scored.reason is None
    assert scored.l_plus == pytest.approx(losses["plus"], abs=1e-4)
    assert scored.l_empty == pytest.approx(losses["empty"], abs=1e-4)
    assert (scored.l_call is None) == ("call" not in losses)
    if scored.l_call is not None:
        assert scored.l_call == pytest.approx(losses["call"], abs=1e-4)
    without = min(losses["empty"], losses.get("call", losses["empty"]))
    assert scored.gain == pytest.approx(without - losses["plus"], abs=2e-4)
    assert scored.logprobs_plus == pytest.approx(logprobs["plus"], abs=1e-4)
    assert scored.logprobs_empty == pytest.approx(logprobs["empty"], abs=1e-4)
    assert scored.logprobs_call == pytest.approx(logprobs.get("call", []), abs=1e-4)


@pytest.mark.parametrize("place", ["prefix", "position"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_scores_are_those_of_plain_forwards(architecture: str, kind: str, place: Place) -> None:
    model = language_model(architecture, kind)
    scores = score_insertions(model, INSERTIONS, place=place)
    for item, scored in zip(INSERTIONS, scores, strict=True):
        assert_equal(scored, plain(model, item, place, 5), WEIGHTS)


@pytest.mark.parametrize("place", ["prefix", "position"])
@pytest.mark.parametrize(
    "window", [Window(1), Window(3), Window(9, "uniform"), Window(None), Window(None, "uniform")], ids=str
)
def test_any_window(window: Window, place: Place) -> None:
    model = language_model("llama", "bytes")
    scores = score_insertions(model, INSERTIONS, place=place, window=window)
    for item, scored in zip(INSERTIONS, scores, strict=True):
        logprobs = plain(model, item, place, window.tokens)
        size = window.tokens or len(logprobs["plus"])
        weights = np.arange(size, 0, -1) if window == Window(3) else np.ones(size)
        assert_equal(scored, logprobs, weights / weights.sum())


def test_the_default_window_is_the_filter_s() -> None:
    assert Window().of(100) == pytest.approx(WEIGHTS)
    assert Window().of(2) == pytest.approx(WEIGHTS[:2])


def test_calls_have_the_losses_that_the_filter_gives_them() -> None:
    model = language_model("gpt2", "bytes")
    [encoded] = model.encode([TEXT])
    index = encoded.starts.tolist().index(TEXT.index(" 115"))
    call = ExecutedCall(Candidate("Calculator", TEXT.index(" 115"), index, 0.5, "48 + 67"), "115", None)
    [filtered] = score_calls(model, [Text(1, Document("a#1"), TEXT)], [[call]], {"Calculator": -1e9})
    [scored] = score_insertions(model, INSERTIONS[:1])
    [kept] = filtered.calls
    assert (scored.l_plus, scored.l_empty, scored.l_call, scored.gain) == pytest.approx(
        (kept.l_plus, kept.l_empty, kept.l_call, kept.gain), abs=1e-5
    )


@pytest.mark.parametrize("place", ["prefix", "position"])
def test_what_cannot_be_scored_has_a_reason_and_costs_no_other(place: Place) -> None:
    model = language_model("gpt2", "bytes")  # no BOS, 1,024 positions
    bad = {
        "position_outside_text": [Insertion(TEXT, -1, "x"), Insertion(TEXT, len(TEXT) + 1, "x")],
        "nothing_after_position": [Insertion(TEXT, len(TEXT), "x"), Insertion("", 0, "x")],
        "position_inside_token": [Insertion("rolls on Monday", 2, "x")],
        "position_not_scorable": [Insertion(TEXT, 0, "x")],
        "context": [Insertion(OTHER, OTHER.index(" 1998"), "x 48" * 700)],
    }
    items = [item for group in bad.values() for item in group]
    good = INSERTIONS[3]
    alone = score_insertions(model, [good], place=place)
    scores = score_insertions(model, [*items, good], place=place)
    reasons = [reason for reason, group in bad.items() for _ in group]
    assert [score.reason for score in scores] == [*reasons, None]
    assert scores[-1].gain == pytest.approx(alone[0].gain, abs=1e-5)


def test_a_position_at_the_begin_can_be_scored_behind_a_bos() -> None:
    model = language_model("llama", "pieces")
    item = Insertion(TEXT, 0, RESULT)
    for place in ("prefix", "position"):
        [scored] = score_insertions(model, [item], place=place)
        assert_equal(scored, plain(model, item, place, 5), WEIGHTS)


def test_a_loss_that_is_not_finite_is_a_reason() -> None:
    model = language_model("llama", "bytes")
    with torch.no_grad():
        weight = model.model.lm_head.weight
        saved = weight.clone()
        weight.fill_(float("nan"))
    try:
        [scored] = score_insertions(model, INSERTIONS[:1])
    finally:
        with torch.no_grad():
            weight.copy_(saved)
    assert scored.reason == "not_finite"
    assert scored.gain is None


@pytest.mark.parametrize("seed", range(8))
def test_random_insertions_share_texts_exactly(seed: int) -> None:
    random = np.random.default_rng(seed)
    model = language_model("gpt_neox", "split_marker")
    words = ["bridge", "48", "rolls", "and", "the", "Tuesday", "->", "(", "opened,", "67", "café"]
    texts = [" ".join(random.choice(words, 12)) for _ in range(3)]
    items = []
    for _ in range(20):
        text = texts[random.integers(3)]
        spaces = [index for index, character in enumerate(text) if character == " "]
        z = " " + " ".join(random.choice(words, random.integers(1, 20)))
        without = z[: random.integers(1, len(z))] if random.random() < 0.5 else None
        items.append(Insertion(text, int(random.choice(spaces)), z, without))
    place: Place = "position" if seed % 2 else "prefix"
    for item, scored in zip(items, score_insertions(model, items, place=place), strict=True):
        assert_equal(scored, plain(model, item, place, 5), WEIGHTS)
