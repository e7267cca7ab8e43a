"""The engine on a GPU against the engine on the CPU: the same calls and losses, in what memory there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.annotator import Annotator
from pipeline.config import MethodConfig, ModelConfig
from pipeline.model import LanguageModel
from pipeline.records import Annotation
from tests import annotating
from tests.models import causal_lm, language_model
from tools_service.client import LocalTools
from tools_service.config import ToolsConfig

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
    copied = causal_lm(architecture, model.vocabulary)
    copied.load_state_dict(model.model.state_dict())
    return LanguageModel(copied.to("cuda", dtype), model.tokenizer)


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
    assert model.batch_tokens > 4_000
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
    two = LanguageModel.load(ModelConfig(path=str(tmp_path), dtype="float32", device="cuda", gpus=2))
    assert len({weight.device for weight in two.model.parameters()}) == 2
    assert [a.funnel for a in annotate(two, method)] == [a.funnel for a in annotate(one, method)]
