"""Models from folders: what is refused, and where the weights end up."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

from bench.fixtures.small_models import causal_lm, language_model, tokenizer
from pipeline.base.config import ModelConfig, RayConfig
from pipeline.engine import loading
from pipeline.engine.errors import ModelError
from pipeline.engine.loading import load_language_model, prepare_language_model
from pipeline.engine.logprobs import token_logprobs
from tools_service.base import fused_layers
from tools_service.base.fused_layers import unfuse_layers

pytestmark = pytest.mark.unit


def test_a_folder_without_a_model_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=str(tmp_path)):
        load_language_model(ModelConfig(path=str(tmp_path)))


def test_a_model_with_damaged_or_missing_weights_is_an_error(tmp_path: Path) -> None:
    """Missing weights would otherwise be random ones."""
    tokenizer("bytes").save_pretrained(tmp_path)
    model = causal_lm("llama", 420)
    weights = {name: part for name, part in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    config = ModelConfig(path=str(tmp_path), dtype="float32", device="cpu")
    with pytest.raises(ModelError, match=r"no weights for model\.layers\.1\.mlp"):
        load_language_model(config)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot load"):
        load_language_model(config)


def test_a_saved_model_is_loaded_from_its_folder(tmp_path: Path) -> None:
    causal_lm("gptj", 420).save_pretrained(tmp_path)
    tokenizer("bytes").save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path), dtype="bfloat16", device="cpu", max_batch_tokens=99)
    model = load_language_model(config)
    assert (model.max_batch_tokens, model.model.dtype) == (99, torch.bfloat16)
    assert model.call_tokens.token_strings[model.call_tokens.api[0]] == " ["


@pytest.mark.parametrize("kind", ["llama", "gptj"])
def test_packed_linear_layers_give_the_same_log_probabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    causal_lm(kind, 420).save_pretrained(tmp_path)
    tokenizer("bytes").save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path), dtype="float32", device="cpu")
    ids = [np.arange(10, 60), np.arange(100, 107)]
    wanted = [np.arange(1, len(each)) for each in ids]
    logprobs = {}
    for choice in ("plain", "packed"):
        monkeypatch.setenv("TOOLFORMER_LINEAR", choice)
        model = load_language_model(config)
        layers = [module for module in model.model.modules() if isinstance(module, torch.nn.Linear)]
        packed = [layer for layer in layers if "forward" in vars(layer)]
        assert bool(packed) == (choice == "packed" and torch.backends.mkldnn.is_available())
        logprobs[choice] = token_logprobs(model, ids, wanted, "plus")[0]
    for plain, other in zip(logprobs["plain"], logprobs["packed"], strict=True):
        np.testing.assert_allclose(other, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gptj", "gpt2", "gpt_neox"])
def test_fused_layers_give_the_same_log_probabilities(kind: str) -> None:
    ids = [np.arange(10, 60), np.arange(100, 107)]
    wanted = [np.arange(1, len(each)) for each in ids]
    lm = causal_lm(kind, 420)
    fused = prepare_language_model(lm, tokenizer("bytes"))
    found = token_logprobs(fused, ids, wanted, "plus")[0]
    mlp = next(module for module in lm.modules() if type(module).__name__.endswith("MLP"))
    assert "forward" in vars(mlp)
    unfuse_layers(lm)
    assert "forward" not in vars(mlp)
    for plain, other in zip(token_logprobs(fused, ids, wanted, "plus")[0], found, strict=True):
        np.testing.assert_allclose(other, plain, rtol=1e-5, atol=1e-5)


def test_layers_that_change_the_scores_are_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module may agree on random numbers and not on those that it gets in the model."""
    monkeypatch.setattr(fused_layers, "_agrees", lambda *_: True)
    monkeypatch.setattr(fused_layers, "_run_rms_norm", lambda norm, eps, x: 2 * x)
    lm = causal_lm("llama", 420)
    prepare_language_model(lm, tokenizer("bytes"))
    assert not any("forward" in vars(module) for module in lm.modules())


def test_without_a_number_of_tokens_a_cpu_gets_a_fixed_one(tmp_path: Path) -> None:
    causal_lm("llama", 420).save_pretrained(tmp_path)
    tokenizer("bytes").save_pretrained(tmp_path)
    assert load_language_model(ModelConfig(path=str(tmp_path), device="cpu")).max_batch_tokens == 16_384


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": "cuda"}, r"model\.device cuda: .* no GPU"),
        ({"gpus": 2}, r"model\.gpus = 2: this process sees 0 GPUs"),
        ({"device": "cpu", "gpus": 2}, r"model\.gpus = 2"),
    ],
)
def test_devices_that_are_not_there_are_an_error(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load_language_model(ModelConfig.model_validate({"path": "nowhere", **given}))


def test_several_gpus_of_an_actor_are_whole_ones() -> None:
    with pytest.raises(ValueError, match=r"(?s)gpus_per_actor.*whole number"):
        RayConfig(gpus_per_actor=1.5)
    assert RayConfig(gpus_per_actor=0.5).gpus_per_actor == 0.5


@pytest.mark.parametrize("native", [True, False])
def test_a_processor_without_bf16_is_told_of(
    native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": native})
    with caplog.at_level(logging.WARNING), pytest.raises(ModelError):
        loading.load_causal_lm(ModelConfig(path=str(tmp_path), device="cpu"))
    assert ("float32 is faster" in caplog.text) != native


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gptj"])
def test_the_engine_passes_through_the_hooks_of_a_model_spread_over_devices(
    architecture: str,
) -> None:
    """What accelerate hangs on the layers moves their inputs, ours among them, to where the weights are."""
    model = language_model(architecture, "bytes")
    sequences = [pieces.ids for pieces in model.encode(["The bakery sold 48 rolls.", "67 on Tuesday"])]
    wanted = [np.arange(1, len(ids)) for ids in sequences]
    expected, _ = token_logprobs(model, sequences, wanted, "plus")
    spread = causal_lm(architecture, model.vocabulary_size)
    spread.load_state_dict(model.model.state_dict())
    lm: Any = spread
    for layer in lm.model.layers if architecture == "llama" else lm.transformer.h:
        hook = AlignDevicesHook(execution_device=torch.device("cpu"), skip_keys="past_key_values")
        add_hook_to_module(layer, hook)
    hooked = prepare_language_model(spread, model.tokenizer)
    assert hooked.can_unpad == model.can_unpad
    found, _ = token_logprobs(hooked, sequences, wanted, "plus")
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
