"""Perplexity against plain transformers, with <API> and without."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.engine.model import LanguageModel
from pipeline.evaluation.perplexity import PerplexityError, perplexity
from pipeline.evaluation.results import PerplexityResult
from pipeline.syntax.tokenizer import tokenize_continuations
from tests.pipeline.inference.test_decode_batch import ARCHITECTURES, random_model

pytestmark = pytest.mark.unit
TEXTS = ["The river is long.", "He said hello, and so on.", "a", "27 + 4 is 31. Today is Monday, he said."]


def plainly(model: LanguageModel, texts: list[str], calls_disabled: str | None = None) -> tuple[float, int]:
    """The definition, one text at a time: exp of the mean loss, and the tokens counted."""
    losses = []
    for text in texts:
        ids = [*model.call_tokens.bos, *tokenize_continuations(model.tokenizer, [" " + text])[0].ids.tolist()]
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        for at, token in enumerate(ids[1:]):
            p = logits[at].double().softmax(-1)
            off = [
                number
                for number, piece in enumerate(model.call_tokens.token_strings)
                if piece == calls_disabled
            ]
            if calls_disabled is not None:
                p[off] = 0
            if token not in off:
                losses.append(-math.log(p[token] / p.sum()))
    return math.exp(sum(losses) / len(losses)), len(losses)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("max_batch_tokens", [8, 4096])
def test_it_is_exp_of_the_mean_loss_of_all_tokens(architecture: str, max_batch_tokens: int) -> None:
    model = random_model(architecture)
    model.max_batch_tokens = max_batch_tokens
    value, tokens = plainly(model, TEXTS)
    found, counts = perplexity(model, TEXTS, disabled=False)
    assert found == pytest.approx(value, rel=1e-5)
    assert counts == PerplexityResult(texts=len(TEXTS), tokens=tokens, left_out=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_disabled_api_has_probability_0_and_the_rest_is_renormalised(architecture: str) -> None:
    model = random_model(architecture)
    value, tokens = plainly(model, TEXTS, calls_disabled=" [")
    found, counts = perplexity(model, TEXTS, disabled=True)
    assert found == pytest.approx(value, rel=1e-5)
    assert counts == PerplexityResult(texts=len(TEXTS), tokens=tokens, left_out=0)
    assert found < perplexity(model, TEXTS, disabled=False)[0]


def test_a_text_that_holds_the_marker_counts_without_it_for_every_model() -> None:
    model = random_model("Llama")
    texts = [*TEXTS, "He said [so] and on."]
    (_, plain), (value, disabled) = (perplexity(model, texts, disabled=off) for off in (False, True))
    assert (plain.left_out, disabled.left_out) == (1, 1)
    assert plain.tokens == disabled.tokens
    assert value == pytest.approx(plainly(model, texts, calls_disabled=" [")[0], rel=1e-5)


def test_a_marker_of_several_tokens_is_barred_at_its_last() -> None:
    model = random_model("Llama", "bytes")
    texts = ["a [b", "c[d", "e f"]
    value, counts = perplexity(model, texts, disabled=True)
    assert counts.left_out == 1
    assert counts.tokens == sum(map(len, texts)) - 1
    assert value < perplexity(model, texts, disabled=False)[0]


def test_what_cannot_be_scored_is_an_error_that_names_the_text() -> None:
    model = random_model("GPT-2")
    with pytest.raises(PerplexityError, match=r"'he said he said .*'… has \d+ tokens, the context 128"):
        perplexity(model, ["he said " * 100], disabled=False)
    with pytest.raises(PerplexityError, match="no held-out text"):
        perplexity(model, [], disabled=False)
    torch.nn.init.constant_(model.model.transformer.wpe.weight[7:], math.nan)
    with pytest.raises(PerplexityError, match=r"not finite in the held-out text 'He said hello"):
        perplexity(model, ["a", "He said hello, and so on, and so on."], disabled=False)
