"""Attention with its log-sum-exp, by the operators that CUDA has for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.fixtures import small_run
from bench.fixtures.small_models import causal_lm, language_model
from pipeline.engine import cuda_attention, partial_attention
from pipeline.engine.loading import prepare_language_model
from pipeline.engine.partial_attention import attend_partially
from pipeline.method.annotator import Annotator
from tests.pipeline.engine import cuda_operators
from tools_service.config import ToolsConfig
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit

ROWS, HEADS, QUERIES, SIZE = 2, 4, 5, 16
LOWEST = torch.finfo(torch.float32).min


@pytest.fixture(params=["flash", "efficient"])
def used(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stand-ins are the operators; which of them ran. Without flash attention there is the other."""
    made: list[str] = []

    def recorded(name: str, operator: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            made.append(name)
            return operator(*arguments, **options)

        return run

    monkeypatch.setattr(cuda_attention, "is_supported", lambda *_: request.param == "flash")
    monkeypatch.setattr(cuda_attention, "_flash", recorded("flash", cuda_operators.flash_attention))
    monkeypatch.setattr(
        cuda_attention, "_efficient", recorded("efficient", cuda_operators.efficient_attention)
    )
    return made


def attend_as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_attention, "_operator", lambda _: cuda_attention.attend)


def states(heads: int, tokens: int, seed: int, size: int = SIZE) -> Tensor:
    """Not contiguous, as views of a cache are not."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, heads, tokens + 3, size, generator=generator)[:, :, :tokens]


def masked(keys: int) -> Tensor:
    hidden = torch.rand(ROWS, 1, QUERIES, keys, generator=torch.Generator().manual_seed(9)) < 0.5
    hidden[..., 0] = False
    return torch.zeros(hidden.shape).masked_fill_(hidden, LOWEST)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("kind", "keys"), [("all", 12), ("all", 40), ("mask", 12), ("mask", 40), ("causal", QUERIES)]
)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_output_and_log_sum_exp(
    groups: int,
    keys: int,
    kind: str,
    scale: float | None,
    used: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attend_as_on_cuda(monkeypatch)
    query, key, value = (
        states(HEADS, QUERIES, 1),
        states(HEADS // groups, keys, 2),
        states(HEADS // groups, keys, 3),
    )
    mask = masked(keys) if kind == "mask" else None
    bias = torch.full((QUERIES, keys), -torch.inf).triu(1) if kind == "causal" else mask
    expected, expected_lse = cuda_operators.attention(query, key, value, bias, scale)
    output, lse = attend_partially(query, key, value, mask, causal=kind == "causal", scale=scale)
    assert output.shape == (ROWS, HEADS, QUERIES, SIZE)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(lse, expected_lse.float(), atol=1e-6, rtol=1e-5)
    assert len(used) == 1
    if kind == "mask":
        assert used == ["efficient"]


@pytest.mark.parametrize("groups", [1, 4])
def test_two_parts_merge_to_attention_over_both(
    groups: int, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt that all rows share, and the keys of each row behind a mask."""
    attend_as_on_cuda(monkeypatch)
    query, mask = states(HEADS, QUERIES, 1), masked(24)
    prompt = [states(HEADS // groups, 9, seed)[:1] for seed in (2, 3)]
    own = [states(HEADS // groups, 24, seed) for seed in (4, 5)]
    flat = query.transpose(0, 1).reshape(1, HEADS, ROWS * QUERIES, SIZE)
    output, lse = attend_partially(flat, *prompt)
    by_row = output.view(HEADS, ROWS, QUERIES, SIZE).transpose(0, 1)
    lse_by_row = lse.view(HEADS, ROWS, QUERIES).transpose(0, 1)
    own_output, own_lse = attend_partially(query, *own, mask)
    share = torch.sigmoid(lse_by_row - own_lse)[..., None]
    both = [
        torch.cat([common.expand(ROWS, -1, -1, -1), row], dim=2)
        for common, row in zip(prompt, own, strict=True)
    ]
    whole, _ = cuda_operators.attention(query, *both, torch.nn.functional.pad(mask, (9, 0)))
    torch.testing.assert_close(own_output.lerp(by_row, share), whole, atol=1e-6, rtol=1e-5)
    assert len(used) == 2


@pytest.mark.parametrize("kind", ["all", "mask", "causal"])
def test_the_operators_take_these_arguments(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own, for tensors without memory: their shapes are the device's."""
    monkeypatch.setattr(cuda_attention, "is_supported", lambda *_: kind != "mask")
    attend_as_on_cuda(monkeypatch)
    on_meta: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16}
    query, key = torch.empty(2, 8, 37, 64, **on_meta), torch.empty(2, 2, 37, 64, **on_meta)
    mask = torch.empty(2, 1, 37, 37, **on_meta) if kind == "mask" else None
    output, lse = attend_partially(query, key, key, mask, causal=kind == "causal")
    assert output.shape == (2, 8, 37, 64)
    assert (lse.shape, lse.dtype) == ((2, 8, 37), torch.float32)


@pytest.mark.parametrize("architecture", ["llama", "gptj"])
def test_calls_and_losses_are_those_of_the_cpu(
    architecture: str, tmp_path: Path, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole annotation by these operators, with caches as a GPU has them."""
    plain = language_model(architecture, "pieces")
    copied = causal_lm(architecture, plain.vocabulary_size)
    copied.load_state_dict(plain.model.state_dict())
    engine = prepare_language_model(copied, plain.tokenizer)
    method = small_run.method(small_run.write_prompts(tmp_path))
    tools = LocalTools.start(ToolsConfig(), method.tools)
    expected = Annotator(plain, tools, method).annotate(small_run.texts(4))
    assert not used
    attend_as_on_cuda(monkeypatch)
    engine.slot_multiple = 64
    found = Annotator(engine, tools, method).annotate(small_run.texts(4))
    assert used
    assert any(one.calls for one in expected)
    for one, other in zip(expected, found, strict=True):
        assert one.funnel == other.funnel
        assert [call.input for call in one.calls] == [call.input for call in other.calls]
        losses = [call.l_plus for call in one.calls]
        assert [call.l_plus for call in other.calls] == pytest.approx(losses, abs=1e-5)
