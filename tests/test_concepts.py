"""The numbers of the worked example in docs/concepts.md are those of the demo's model."""

from __future__ import annotations

import re

import pytest

from cluster.submit import ROOT
from pipeline.base.config import ModelConfig
from pipeline.engine.loading import load_language_model
from pipeline.method.insertions import Insertion, ScoredInsertion, score_insertions

pytestmark = pytest.mark.unit

TEXT = (
    "The market loads 45 stamps into every cart, and there are 10 carts. "
    "The temperature fell to 4 degrees. In total there are 450 stamps."
)
CALL = " [Calculator(45 * 10)]"


@pytest.fixture(scope="module")
def scores() -> list[ScoredInsertion]:
    """The scores of the same call before “450” and before “10 carts”."""
    config = ModelConfig(path=str(ROOT / "demo/models/annotator"), dtype="float32", device="cpu")
    positions = [TEXT.index(" 450"), TEXT.index(" 10 carts")]
    insertions = [Insertion(TEXT, at, f"{CALL[:-1]} -> 450]", CALL) for at in positions]
    return score_insertions(load_language_model(config), insertions)


def test_the_figure_has_the_losses_of_each_token(scores: list[ScoredInsertion]) -> None:
    figure = (ROOT / "docs/figures/filter.svg").read_text()
    shown = re.findall(r'class="small" xml:space="preserve">([\d.]+)<', figure)
    score = scores[0]
    losses = [*(score.logprobs_empty or ()), *(score.logprobs_call or ()), *(score.logprobs_plus or ())]
    assert [float(text) for text in shown] == pytest.approx([-loss for loss in losses], abs=6e-4)
    for text, loss in (("L(∅)", score.l_empty), ("L(call)", score.l_call), ("L⁺", score.l_plus)):
        assert f"{text} = {loss:.2f}<" in figure
    assert f"{score.gain:.2f} nats" in figure


def test_the_page_says_what_the_second_loss_changes(scores: list[ScoredInsertion]) -> None:
    page = " ".join((ROOT / "docs/concepts.md").read_text().split())
    score = scores[1]
    assert score.l_empty is not None
    assert score.l_plus is not None
    assert f"has L⁺ = {score.l_plus:.2f} and, without a call, {score.l_empty:.2f}" in page
    assert f"a gain of {score.l_empty - score.l_plus:.2f}" in page
    assert f"gives {score.l_call:.2f}" in page
    assert f"−{abs(score.gain or 0):.2f}, and the call is dropped" in page
