"""The memory table of fine-tuning, against published sizes and counts by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import GPTJConfig

from bench.finetune import llama
from bench.finetune_memory import MODELS, ModelSize, model_size, model_states
from pipeline.finetuning.step.accelerator import prepare_deepspeed

pytestmark = pytest.mark.unit
SIZE = ModelSize(1_000, 100, 4, 16, 50, 200.0, 0.5)


@pytest.fixture(autouse=True, scope="module")
def _cpu() -> None:
    prepare_deepspeed(use_gpu=False)


def test_parameters_are_those_of_the_published_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.finetune_memory._kept_by_block", lambda config, dtype: (0.0, 0.0))
    gptj, small, large = (model_size(build()) for build in MODELS.values())
    assert (gptj.parameters, gptj.layers) == (6_050_882_784, 28)
    assert (small.parameters, large.parameters) == (1_235_814_400, 8_030_261_248)
    assert gptj.largest_layer == 50_400 * 4_096 + 50_400  # the output embeddings and their bias


@pytest.mark.parametrize("kv_heads", [4, 1])
def test_a_block_keeps_what_its_backward_pass_needs(kv_heads: int) -> None:
    hidden, inner = 64, 192
    size = model_size(llama(hidden, 3, 4, kv_heads, inner, 100), torch.float32)
    # Two norms keep input, normalized input and output; attention its queries and its output, and keys and
    # values; the MLP keeps gate, its activation, the other projection and their product. All in float32.
    keys_and_values = 2 * hidden * kv_heads // 4
    elements = 8 * hidden + keys_and_values + 4 * inner
    assert size.quadratic == 0.0  # this attention does not keep the weights of all pairs
    assert size.linear / 4 == pytest.approx(elements, rel=0.05)


def test_eager_attention_keeps_a_matrix_of_all_pairs() -> None:
    config = GPTJConfig(n_embd=64, n_layer=2, n_head=4, rotary_dim=8)
    size = model_size(config, torch.float32)
    at_least, at_most = 4 * 4, 4 * 4 * 4  # float32, four heads, one to four matrices
    assert at_least <= size.quadratic <= at_most


def test_activations_by_hand() -> None:
    block = 2 * (200 * 8 + 0.5 * 64)
    assert SIZE.activations(2, 8, checkpointing=False) == 4 * block
    assert SIZE.activations(2, 8, checkpointing=True) == 4 * (2 * 8 * 16 * 2) + block
    assert SIZE.logits(2, 8) == 800 * (2 + 2 + 12)


def test_float32_copies_of_logits_are_bounded() -> None:
    size = replace(SIZE, vocabulary=100_000)
    grown = size.logits(16, 1_024) - size.logits(8, 1_024)
    assert grown == 8 * 1_024 * 100_000 * 4  # bfloat16 logits and gradient, nothing in float32


def test_states_by_stage() -> None:
    def gpu(stage: int, gpus: int, *, offload: bool = False) -> float:
        return model_states(SIZE, stage, gpus, offload=offload)[0]

    assert [gpu(stage, 8) for stage in (1, 2, 3)] == [4_000 + 2_000, 2_000 + 2_250, 400 + 2_250]
    assert gpu(1, 1) == gpu(2, 1) == 20_000
    assert [gpu(stage, 8, offload=True) for stage in (1, 2, 3)] == [4_000, 2_000, 400]
    assert model_states(SIZE, 3, 8, offload=True)[1] == 1_000 * 18 * 1.5
