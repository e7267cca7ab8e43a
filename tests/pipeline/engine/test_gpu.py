"""The engine on a GPU against the engine on the CPU: the same calls and losses, in what memory there is."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.fixtures import small_run as annotating
from bench.fixtures.small_models import causal_lm, language_model
from pipeline.base.config import MethodConfig, ModelConfig
from pipeline.base.records import Annotation
from pipeline.engine.compiling import compile_layers
from pipeline.engine.loading import load_language_model, prepare_language_model
from pipeline.engine.model import LanguageModel
from pipeline.engine.sampler import Sampler
from pipeline.method.annotator import Annotator
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
