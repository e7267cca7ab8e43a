"""The loss of labelled tokens, against cross entropy over all positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bench.fixtures.small_models import causal_lm
from pipeline.finetuning.data.batches import IGNORED
from pipeline.finetuning.step import token_loss
from pipeline.finetuning.step.token_loss import LabelledLogits, has_dropout, row_groups, token_nll

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_parts_loss_and_gradient_are_those_of_one_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(11, 30, generator=generator)).to(dtype)
    targets = torch.randint(0, 30, (11,), generator=generator)
    weights = torch.randn(11, generator=generator)  # of the rows in the loss
    losses, gradients = [], []
    for limit in (2**26, 3 * 30):  # at once; three rows at a time, and two at the end
        monkeypatch.setattr(token_loss, "MAX_FLOAT32_LOGITS", limit)
        own = logits.clone().requires_grad_()
        nll = token_nll(own, targets)
        (nll * weights).sum().backward()
        losses.append(nll)
        gradients.append(own.grad)
    assert losses[0].dtype == torch.float32
    assert torch.equal(losses[0], F.cross_entropy(logits.float(), targets, reduction="none"))
    assert torch.equal(losses[0], losses[1])
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.parametrize("limit", [2**26, 8])
def test_a_token_without_a_finite_loss_leaves_the_others_alone(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(token_loss, "MAX_FLOAT32_LOGITS", limit)
    logits = torch.zeros(3, 4)
    logits[1, 2] = torch.nan
    nll = token_nll(logits, torch.tensor([0, 1, 2]))
    assert nll.isfinite().tolist() == [True, False, True]


def test_the_backward_pass_of_parts_is_that_of_their_definition() -> None:
    logits = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    # float32 inside, so the step of the numerical gradient is large.
    assert torch.autograd.gradcheck(
        lambda x: token_loss._TokenNll.apply(x, torch.tensor([0, 5, 2, 2, 1]), 2).double(),
        logits,
        eps=1e-2,
        atol=1e-2,
    )


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gptj", "gpt_neox"])
def test_logits_of_labelled_positions_give_the_loss_and_gradients_of_all(architecture: str) -> None:
    model = causal_lm(architecture, 40).eval()
    labels = np.full((3, 7), IGNORED, dtype=np.int64)
    labels[0, :6] = [4, 8, 15, 16, 23, 39]
    labels[1, [1, 4]] = [2, 3]  # masked in between
    ids = torch.arange(21).view(3, 7)

    def gradients() -> list[torch.Tensor]:
        found = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
        model.zero_grad()
        return found

    logits = model(input_ids=ids).logits
    expected = F.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(labels).flatten(), ignore_index=IGNORED, reduction="none"
    ).view(3, 7)
    expected.sum().backward()
    plain = gradients()
    shapes: list[torch.Size] = []
    model.get_output_embeddings().register_forward_hook(lambda head, args, out: shapes.append(out.shape))
    nll = LabelledLogits(model).nll(model, {"input_ids": ids}, labels)
    nll.sum().backward()
    assert shapes == [(8, 40)]
    torch.testing.assert_close(nll, expected, atol=1e-6, rtol=1e-6)
    assert nll[2].tolist() == [0.0] * 7
    torch.testing.assert_close(gradients(), plain, atol=1e-6, rtol=1e-5)
    assert model(input_ids=ids).logits.shape == (3, 7, 40)  # others get all of them


def test_rows_of_similar_length_share_a_forward_pass() -> None:
    lengths = [40, 200, 41, 180, 39]
    labels = np.full((5, 230), IGNORED, dtype=np.int64)
    for row, length in enumerate(lengths):
        labels[row, :length] = 1
    groups = [(sorted(rows.tolist()), width) for rows, width in row_groups(labels)]
    assert groups == [([0, 2, 4], 41), ([1, 3], 200)]


def test_rows_of_one_length_stay_together() -> None:
    ((rows, width),) = row_groups(np.ones((4, 1_000), dtype=np.int64))
    assert (sorted(rows.tolist()), width) == ([0, 1, 2, 3], 1_000)


def test_dropout_is_noticed() -> None:
    assert has_dropout(causal_lm("gpt2", 40))
    assert not has_dropout(causal_lm("llama", 40))
