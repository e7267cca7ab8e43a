"""Ragged attention is causal attention over each sequence, and scoring by it gives the same losses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench.fixtures.small_models import ARCHITECTURES, causal_lm, tokenizer
from pipeline.engine import checks, ragged_attention
from pipeline.engine.loading import prepare_language_model
from pipeline.engine.logprobs import token_logprobs
from pipeline.engine.model import LanguageModel
from pipeline.engine.unpadding import UnpaddedLayout, unpadded_attention, unpadded_forward
from tests.pipeline.engine import cuda_operators

pytestmark = pytest.mark.unit

LENGTHS = (3, 7, 1, 5)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The stand-in is the operator; the number of tokens of each call."""
    made: list[int] = []

    def operator(query: torch.Tensor, *tensors: Any, enable_gqa: bool = False, **options: Any) -> Any:
        made.append(len(query))
        return cuda_operators.varlen_attn(query, *tensors, enable_gqa=enable_gqa, **options)

    monkeypatch.setattr(ragged_attention, "varlen_attn", operator)
    return made


def layouts() -> tuple[UnpaddedLayout, UnpaddedLayout]:
    is_token = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    device = torch.device("cpu")
    padded = UnpaddedLayout.of(is_token, device, causal=True)
    return padded, UnpaddedLayout.of(is_token, device, causal=True, ragged=True)


def states(heads: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(1, heads, sum(LENGTHS), size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_output_is_that_of_padded_rows(groups: int, scaling: float | None, calls: list[int]) -> None:
    module: Any = SimpleNamespace(num_key_value_groups=groups, is_causal=True)
    query, key, value = states(4, 8, 1), states(4 // groups, 8, 2), states(4 // groups, 8, 3)
    outputs = []
    for layout in layouts():
        with unpadded_forward(layout):
            output, _ = unpadded_attention(module, query, key, value, None, scaling=scaling)
        outputs.append(output)
    padded, ragged = outputs
    assert calls == [sum(LENGTHS)]
    assert ragged.shape == padded.shape == (1, sum(LENGTHS), 4, 8)
    torch.testing.assert_close(ragged, padded, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "causal", "options"),
    [
        (8, True, {"softcap": 30.0}),
        (8, False, {}),
        (8, True, {"is_causal": False}),
        (12, True, {}),
        (264, True, {}),
    ],
)
def test_what_the_operator_cannot_do_is_padded(
    size: int, causal: bool, options: dict[str, Any], calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = SimpleNamespace(is_causal=causal)
    _, ragged = layouts()
    seen = []
    monkeypatch.setattr(
        "pipeline.engine.unpadding._attend",
        lambda _, query, *__, **___: seen.append(1) or query.transpose(1, 2),
    )
    with unpadded_forward(ragged):
        unpadded_attention(
            module, states(4, size, 1), states(4, size, 2), states(4, size, 3), None, **options
        )
    assert seen == [1]
    assert not calls


def model(architecture: str) -> LanguageModel:
    words = tokenizer("bytes")
    return prepare_language_model(causal_lm(architecture, len(words)), words)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_those_of_padded_attention(architecture: str, calls: list[int]) -> None:
    engine = model(architecture)
    random = np.random.default_rng(0)
    sequences = [random.integers(0, engine.vocabulary_size, length) for length in (40, 9, 23, 2)]
    wanted = [np.arange(1, len(ids)) for ids in sequences]
    expected, padded_costs = token_logprobs(engine, sequences, wanted, "plus")
    assert not calls
    engine.ragged_attention = True
    found, costs = token_logprobs(engine, sequences, wanted, "plus")
    assert calls
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    # Of a sequence of n + 1 tokens n are fed, and attend to n (n + 1) / 2 pairs.
    assert [cost.attention_pairs for cost in costs] == [(n - 1) * n // 2 for n in (40, 9, 23, 2)]
    assert all(
        cost.attention_pairs >= other.attention_pairs for cost, other in zip(padded_costs, costs, strict=True)
    )


def test_it_is_used_where_it_gives_the_same_scores(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = model("llama")
    assert not engine.ragged_attention  # a CPU
    monkeypatch.setattr(checks, "is_supported", lambda *_: True)
    assert checks.check_ragged(engine)
    assert calls
    assert not engine.ragged_attention
    wrong = lambda query, *_, **__: torch.zeros_like(query)  # noqa: E731
    monkeypatch.setattr(ragged_attention, "varlen_attn", wrong)
    assert not checks.check_ragged(engine)


def test_an_operator_that_fails_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = model("llama")
    monkeypatch.setattr(checks, "is_supported", lambda *_: True)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(ragged_attention, "varlen_attn", fail)
    assert not checks.check_ragged(engine)
    assert "no kernel image" in caplog.text
    assert not engine.ragged_attention


def test_the_operator_takes_these_arguments() -> None:
    """torch's own signature, and its implementation for tensors without memory."""
    device = torch.device("meta")
    query, key = (torch.empty(1, heads, 16, 8, device=device, dtype=torch.bfloat16) for heads in (4, 2))
    cu_seqlens = torch.empty(4, dtype=torch.int32, device=device)
    output = ragged_attention.attend(query, key, key, cu_seqlens, 7, 0.3)
    assert output.shape == (1, 16, 4, 8)
    assert output.dtype == torch.bfloat16
    assert not ragged_attention.is_supported(torch.device("cpu"), torch.bfloat16)
