"""Perplexity against plain transformers, with <API> and without."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.benchmarks.wikitext import RunningText
from pipeline.engine.model import LanguageModel
from pipeline.evaluation.perplexity import PerplexityError, perplexity, running_text_perplexity
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


def running_text(text: str) -> RunningText:
    return RunningText(text, text.count("\n") + 1, 0, len(text.split()))


def windowed(model: LanguageModel, text: str, window: int, stride: int) -> list[float]:
    """-ln p of each token, one at a time, with the context that its window gives it."""
    ids = [*model.call_tokens.bos, *model.encode([text])[0].ids]
    pieces = model.call_tokens.token_strings
    losses, start = [], 0
    for position in range(1, len(ids)):
        spellings = (" [", "[") if pieces[ids[position - 1]] == " " else (" [",)
        off = [number for number, piece in enumerate(pieces) if piece in spellings]
        while position >= start + window:
            start += stride
        with torch.no_grad():
            p = model.model(torch.tensor([ids[start:position]])).logits[0, -1].softmax(0)
        p[off] = 0
        losses.append(-math.log(p[ids[position]] / p.sum()))
    return losses


@pytest.mark.parametrize("architecture", ["Llama", "GPT-2"])
@pytest.mark.parametrize(("window", "stride"), [(16, 8), (16, 1), (8, 7), (1_000, 512), (16, 500)])
def test_a_running_text_is_read_in_windows_that_overlap(architecture: str, window: int, stride: int) -> None:
    model = random_model(architecture)
    text = running_text("He said hello,\nand so on, " * 4 + "and the river is long.")
    found = running_text_perplexity(model, text, window, stride)
    losses = windowed(model, text.text, found.window, found.stride)
    assert found.token_perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert found.word_perplexity == pytest.approx(math.exp(sum(losses) / text.words), rel=1e-5)
    assert (found.tokens, found.left_out) == (len(losses), 0)
    assert found.window == min(window, model.max_positions)
    assert found.stride == min(stride, found.window - 1)
    assert (found.words, found.lines) == (text.words, 5)


def test_a_marker_in_a_running_text_is_left_out_once() -> None:
    model = random_model("Llama")
    text = running_text("He said hello, and so on [and on, and so on")
    found = running_text_perplexity(model, text, 8, 2)
    assert found.left_out == 1
    assert found.windows > 2
    with pytest.raises(PerplexityError, match="no token to predict"):
        running_text_perplexity(random_model("Llama", "bytes"), running_text(""), 8, 2)
