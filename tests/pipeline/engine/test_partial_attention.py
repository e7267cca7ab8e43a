"""Attention to parts of the keys, merged, is attention to all of them."""

from __future__ import annotations

import pytest
import torch

from pipeline.engine.partial_attention import attend_partially, merge

pytestmark = pytest.mark.unit

ROWS, QUERIES, PROMPT, KEYS, SIZE = 3, 5, 70, 9, 16


def plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention by its definition in float64, and the log-sum-exp of its scores."""
    groups = query.shape[1] // key.shape[1]
    key, value = (part.double().repeat_interleave(groups, 1) for part in (key, value))
    scores = scale * query.double() @ key.transpose(2, 3)
    scores = scores.masked_fill(~visible, -torch.inf)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("causal", [True, False])
def test_a_prompt_and_the_own_row_merged_are_one_attention(heads: int, causal: bool) -> None:
    query = random(ROWS, heads, QUERIES, SIZE)
    prompt = random(1, 2, PROMPT, SIZE), random(1, 2, PROMPT, SIZE) + 1
    own = random(ROWS, 2, KEYS, SIZE), random(ROWS, 2, KEYS, SIZE) - 1
    visible = random(ROWS, 1, QUERIES, KEYS) > 0
    visible[..., 0] = True
    mask: torch.Tensor | None = torch.zeros(visible.shape).masked_fill(
        ~visible, torch.finfo(torch.float32).min
    )
    if causal:
        visible, mask = torch.ones(ROWS, 1, QUERIES, KEYS).tril().bool(), None
    output, log_sum_exp = attend_partially(query, *own, mask, causal=causal, scale=0.3)
    expected, expected_sum = plain(query, *own, visible, 0.3)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(log_sum_exp.double(), expected_sum, atol=1e-5, rtol=0)
    # The prompt is read by the queries of all rows at once.
    flat = query.transpose(0, 1).reshape(1, heads, ROWS * QUERIES, SIZE)
    other, other_sum = attend_partially(flat, *prompt, scale=0.3)
    other = other.reshape(heads, ROWS, QUERIES, SIZE).transpose(0, 1)
    other_sum = other_sum.reshape(heads, ROWS, QUERIES).transpose(0, 1)
    both = [
        torch.cat([common.expand(ROWS, -1, -1, -1), part], 2)
        for common, part in zip(prompt, own, strict=True)
    ]
    everything = torch.cat([torch.ones(ROWS, 1, QUERIES, PROMPT).bool(), visible], 3)
    expected, _ = plain(query, *both, everything, 0.3)
    found = merge(output, log_sum_exp, other, other_sum)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_a_query_that_sees_nothing_of_a_part_gets_the_other_part() -> None:
    query, key, value = random(1, 2, 1, SIZE), random(1, 2, KEYS, SIZE), random(1, 2, KEYS, SIZE)
    hidden = torch.full((1, 1, 1, KEYS), torch.finfo(torch.float32).min)
    nothing, no_sum = attend_partially(query, key, value, hidden)
    other, other_sum = attend_partially(query, key, value)
    torch.testing.assert_close(merge(nothing, no_sum, other, other_sum), other)
