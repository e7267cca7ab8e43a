"""GPT-J with another attention is GPT-J."""

from __future__ import annotations

import pytest
import torch

from bench.fixtures.small_models import causal_lm, language_model, tokenizer
from pipeline.engine import gptj
from pipeline.engine.loading import prepare_language_model
from pipeline.engine.unpadding import UnpaddedLayout, current_layout

pytestmark = pytest.mark.unit

IDS = torch.arange(1, 25).reshape(2, 12) * 7 % 400


def test_logits_are_those_of_its_own_attention() -> None:
    model = causal_lm("gptj", 420)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 7:] = 0
    with torch.no_grad():
        own = [model(IDS).logits, model(IDS, attention_mask=mask).logits[:, :7]]
        assert gptj.install(model)
        found = [model(IDS).logits, model(IDS, attention_mask=mask).logits[:, :7]]
        gptj.uninstall(model)
        again = [model(IDS).logits, model(IDS, attention_mask=mask).logits[:, :7]]
    for one, other, third in zip(own, found, again, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)
        assert torch.equal(third, one)
        assert not torch.equal(other, one), "nothing was replaced"


def test_other_architectures_are_left_alone() -> None:
    assert not gptj.install(causal_lm("llama", 420))


def test_an_attention_that_changes_the_numbers_is_taken_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gptj.unpadded_attention

    def wrong(*args: object, scaling: float, **more: object) -> object:
        return right(*args, scaling=2 * scaling, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(gptj, "unpadded_attention", wrong)
    model = prepare_language_model(causal_lm("gptj", 420), tokenizer("bytes"))
    assert (model.can_unpad, model.eager_attention) == (False, True)
    assert "_attn" not in vars(model.model.transformer.h[0].attn)


def test_a_forward_that_fails_leaves_no_layout_behind() -> None:
    model = language_model("gptj", "bytes")
    is_token = torch.ones(1, 3, dtype=torch.bool).numpy()
    with pytest.raises(IndexError):
        model.hidden_states(torch.tensor([[10**6, 1, 2]]), UnpaddedLayout.of(is_token, model.device))
    assert current_layout(model.device) is None


def test_the_table_of_positions_is_seen_and_not_copied_by_the_rows() -> None:
    model = causal_lm("gptj", 420)
    attention = model.transformer.h[0].attn
    own = attention._get_embed_positions(IDS)
    assert gptj.install(model)
    seen = attention._get_embed_positions(IDS)
    assert torch.equal(seen, own)
    assert seen.stride(0) == 0
    gptj.uninstall(model)
    assert attention._get_embed_positions(IDS).stride(0) > 0
