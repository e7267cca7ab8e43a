"""The engine on a GPU against the engine on the CPU: the same calls and losses, in what memory there is."""

from __future__ import annotations

import warnings
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.device_profile import idle_shares, traced
from bench.fixtures import small_run as annotating
from bench.fixtures.small_models import causal_lm, language_model
from bench.random_models import SHAPES, random_model
from bench.workload import DEMO
from pipeline.base.config import MethodConfig, ModelConfig
from pipeline.base.records import Annotation
from pipeline.engine import ragged_attention
from pipeline.engine.compiling import compile_layers
from pipeline.engine.loading import load_language_model, prepare_language_model
from pipeline.engine.logprobs import token_logprobs
from pipeline.engine.memory import limit_to_share
from pipeline.engine.model import LanguageModel
from pipeline.engine.partial_attention import attend_partially
from pipeline.engine.sampler import Sampler
from pipeline.method.annotator import Annotator
from tests.pipeline.engine import cuda_operators
from tools_service.base.checkpoints import load_tokenizer
from tools_service.config import ToolsConfig
from tools_service.tools.client import LocalTools

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

ARCHITECTURES = ["llama", "gpt2", "gpt_neox", "gptj"]


@pytest.fixture
def method(tmp_path: Path) -> MethodConfig:
    return annotating.method(annotating.write_prompts(tmp_path / "prompts"))


def on_gpu(architecture: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    model = language_model(architecture, "pieces")
    copied = causal_lm(architecture, model.vocabulary_size)
    copied.load_state_dict(model.model.state_dict())
    for (
        weight
    ) in copied.parameters():  # and no more: rotary frequencies stay float32, as from_pretrained has them
        weight.data = weight.data.to(dtype)
    return prepare_language_model(copied.to("cuda"), model.tokenizer)


def annotate(model: LanguageModel, method: MethodConfig) -> list[Annotation]:
    tools = LocalTools.start(ToolsConfig(), ("Calculator", "Calendar"))
    return Annotator(model, tools, method).annotate(annotating.texts(12))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_calls_and_losses_are_those_of_the_cpu(architecture: str, method: MethodConfig) -> None:
    expected = annotate(language_model(architecture, "pieces"), method)
    for one, other in zip(expected, annotate(on_gpu(architecture), method), strict=True):
        assert one.funnel == other.funnel
        for call, found in zip(one.calls, other.calls, strict=True):
            assert (call.input, call.position) == (found.input, found.position)
            assert found.l_plus == pytest.approx(call.l_plus, abs=1e-3)
            assert found.gain == pytest.approx(call.gain, abs=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiled_norms_and_mlps_change_nothing(architecture: str, method: MethodConfig) -> None:
    expected, model = annotate(on_gpu(architecture), method), on_gpu(architecture)
    assert compile_layers(model.model)
    for one, other in zip(expected, annotate(model, method), strict=True):
        assert one.funnel == other.funnel
        assert [c.l_plus for c in other.calls] == pytest.approx([c.l_plus for c in one.calls], abs=1e-3)


def test_a_step_of_drawing_waits_for_the_card_twice(
    method: MethodConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the tokens, and to see whether rows can be given up."""
    waits: list[int] = []
    step = Sampler.step

    def watched(draws: Sampler) -> None:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step(draws)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("called a synchronizing" in str(one.message) for one in seen))

    monkeypatch.setattr(Sampler, "step", watched)
    annotate(on_gpu("llama"), method)
    assert len(waits) > 5
    assert max(waits) == 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_in_bfloat16_are_close(architecture: str, method: MethodConfig) -> None:
    expected = annotate(on_gpu(architecture), method)
    found = annotate(on_gpu(architecture, torch.bfloat16), method)
    calls = [{(c.position, c.input): c.l_plus for c in one.calls} for one in expected]
    others = [{(c.position, c.input): c.l_plus for c in one.calls} for one in found]
    gaps = [a[key] - b[key] for a, b in zip(calls, others, strict=True) for key in a.keys() & b.keys()]
    assert gaps
    assert np.abs(gaps).mean() < 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_measured_batches_fit(architecture: str, method: MethodConfig) -> None:
    model = on_gpu(architecture)
    assert model.max_batch_tokens > 4_000
    torch.cuda.reset_peak_memory_stats()
    annotate(model, method)
    assert torch.cuda.max_memory_allocated() < torch.cuda.get_device_properties(0).total_memory


def states(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to("cuda", dtype)


@pytest.mark.parametrize("size", [64, 80, 128, 256])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("lengths", [(3, 70, 1, 129), (1, 1, 1)])
def test_ragged_attention_is_causal_attention_over_each_sequence(
    size: int, groups: int, lengths: tuple[int, ...]
) -> None:
    if not ragged_attention.is_supported(torch.device("cuda"), torch.bfloat16):
        pytest.skip("no flash attention in bfloat16 on this device")
    query = states(1, 8, sum(lengths), size, dtype=torch.bfloat16, seed=1)
    key, value = (states(1, 8 // groups, sum(lengths), size, dtype=torch.bfloat16, seed=n) for n in (2, 3))
    cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    output = ragged_attention.attend(query, key, value, cu_seqlens.cuda(), max(lengths), 0.2)
    tokens = [one[0].transpose(0, 1).cpu().double() for one in (query, key, value)]
    expected = cuda_operators.varlen_attn(
        *tokens, cu_seqlens, cu_seqlens, *[max(lengths)] * 2, scale=0.2, window_size=(-1, 0), enable_gqa=True
    )
    torch.testing.assert_close(output[0].cpu().double(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("kind", ["all", "mask", "causal"])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [64, 256])
def test_attention_with_its_log_sum_exp(kind: str, groups: int, dtype: torch.dtype, size: int) -> None:
    query = states(3, 8, 37, size, dtype=dtype, seed=1)
    key, value = (states(3, 8 // groups, 37, size, dtype=dtype, seed=seed) for seed in (2, 3))
    bias, mask = None, None
    hidden = torch.rand(3, 1, 37, 37, generator=torch.Generator().manual_seed(4)) < 0.5
    if kind == "mask":
        bias = torch.zeros(hidden.shape).masked_fill_(hidden, torch.finfo(dtype).min)
        mask = bias.to("cuda", dtype)
    if kind == "causal":
        bias = torch.full((37, 37), -torch.inf).triu(1)
    found = attend_partially(query, key, value, mask, causal=kind == "causal", scale=0.1)
    expected = cuda_operators.attention(query.cpu(), key.cpu(), value.cpu(), bias, 0.1)
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu().double(), other.double(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_engine_uses_what_the_card_has(architecture: str) -> None:
    half = on_gpu(architecture, torch.bfloat16)
    assert half.can_unpad
    assert half.can_share_prompts
    assert half.ragged_attention == ragged_attention.is_supported(half.device, torch.bfloat16)
    whole = on_gpu(architecture)
    assert whole.can_unpad
    assert whole.can_share_prompts
    assert not whole.ragged_attention


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_by_ragged_attention_are_those_of_padded_rows(architecture: str) -> None:
    model = on_gpu(architecture, torch.bfloat16)
    random = np.random.default_rng(0)
    sequences = [random.integers(0, model.vocabulary_size, length) for length in (40, 9, 200, 2)]
    wanted = [np.arange(1, len(ids)) for ids in sequences]
    scores = []
    for ragged in (False, model.ragged_attention):
        model.ragged_attention = ragged
        scores.append(np.concatenate(token_logprobs(model, sequences, wanted, "plus")[0]))
    assert np.abs(scores[0] - scores[1]).mean() < 0.05


def test_a_process_with_a_share_of_the_card_stays_within_it(method: MethodConfig) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    free, _ = torch.cuda.mem_get_info()
    share = (torch.cuda.memory_reserved() + free / 4 + 2**29) / total
    whole = on_gpu("llama").max_batch_tokens
    limit_to_share(share)
    try:
        model = on_gpu("llama")
        assert model.max_batch_tokens <= whole
        torch.cuda.reset_peak_memory_stats()
        annotate(model, method)
        assert torch.cuda.max_memory_reserved() <= share * total
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_profile_finds_kernels_and_gaps(method: MethodConfig) -> None:
    model = on_gpu("llama")
    annotate(model, method)
    table, events = traced(lambda: annotate(model, method), model.device)
    shares = idle_shares(events)
    assert {"positions", "decode", "plus", "all"} <= shares.keys()
    assert all(0 <= share <= 1 for share in shares.values())
    assert "CUDA" in table


@pytest.mark.parametrize("name", ["gpt2-small", "llama-1b"])
def test_a_shape_is_made_on_the_card_in_its_type(name: str) -> None:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    tokenizer = load_tokenizer(DEMO, "--model")
    model = random_model(SHAPES[name], tokenizer, torch.device("cuda"), torch.bfloat16)
    weights = sum(weight.numel() for weight in model.parameters())
    assert {(weight.device.type, weight.dtype) for weight in model.parameters()} == {("cuda", torch.bfloat16)}
    assert torch.cuda.max_memory_allocated() - before < 2.6 * weights


def test_a_batch_that_does_not_fit_the_card_is_halved(method: MethodConfig) -> None:
    model = on_gpu("gptj")
    expected = annotate(model, method)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 24 * 2**20) / total)
    try:
        found = annotate(model, method)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [one.funnel for one in found] == [one.funnel for one in expected]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
def test_a_model_on_two_gpus_is_the_model_on_one(tmp_path: Path, method: MethodConfig) -> None:
    one = on_gpu("llama")
    one.model.save_pretrained(tmp_path)
    one.tokenizer.save_pretrained(tmp_path)
    two = load_language_model(ModelConfig(path=str(tmp_path), dtype="float32", device="cuda", gpus=2))
    assert len({weight.device for weight in two.model.parameters()}) == 2
    assert [a.funnel for a in annotate(two, method)] == [a.funnel for a in annotate(one, method)]
