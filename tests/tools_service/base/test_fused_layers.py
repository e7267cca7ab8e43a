"""Fused norms, MLPs and rotary positions compute what transformers' modules compute."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from bench.fixtures.small_models import ARCHITECTURES, causal_lm
from tools_service.base import fused_layers
from tools_service.base.fused_layers import PIECE, fuse_layers, unfuse_layers

pytestmark = pytest.mark.unit

# What is fused in each: norms, MLPs, attention with rotary positions. LayerNorm is one operator as it is.
FUSED = {
    "llama": {"LlamaRMSNorm", "LlamaMLP", "LlamaAttention"},
    "gpt_neox": {"GPTNeoXMLP", "GPTNeoXAttention"},
    "gpt2": {"GPT2MLP"},
    "gptj": {"GPTJMLP"},
    "qwen2": {"Qwen2RMSNorm", "Qwen2MLP", "Qwen2Attention"},
    "qwen3": {"Qwen3RMSNorm", "Qwen3MLP", "Qwen3Attention"},
}


def fused_names(model: nn.Module) -> set[str]:
    return {type(module).__name__ for module in model.modules() if "forward" in vars(module)}


def randomized(model: nn.Module) -> nn.Module:
    """All weights random, norms and biases too, which begin as ones and zeros."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model.eval()


@torch.inference_mode()
def logits(model: nn.Module, length: int = 40) -> Tensor:
    ids = torch.arange(2 * length).view(2, length) * 7 % 300
    result: Tensor = model(input_ids=ids).logits
    return result


@pytest.mark.parametrize("architecture", FUSED)
def test_the_logits_of_every_architecture_stay_the_same(architecture: str) -> None:
    model = randomized(causal_lm(architecture, 300))
    before = logits(model)
    assert fuse_layers(model) > 0
    assert fused_names(model) == FUSED[architecture]
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
    unfuse_layers(model)
    assert not fused_names(model)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_logits_differ_by_rounding_only(architecture: str) -> None:
    model = randomized(causal_lm(architecture, 300)).bfloat16()
    exact = logits(model.float())
    plain = logits(model.bfloat16()).float()
    assert fuse_layers(model) > 0
    # Fused operators round less often.
    error, plain_error = ((each - exact).abs().mean() for each in (logits(model).float(), plain))
    assert 0 < error < 1.05 * plain_error


def test_a_sequence_of_more_tokens_than_a_piece_stays_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_layers, "PIECE", 7)
    model = randomized(causal_lm("llama", 300))
    before = logits(model)
    fuse_layers(model)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_pieces_are_put_together_in_order() -> None:
    x = torch.randn(2, PIECE, 3).transpose(0, 1)
    assert torch.equal(fused_layers._in_pieces(lambda piece: 2 * piece, x), 2 * x)


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu", "silu", "relu"])
@torch.inference_mode()
def test_activations_have_an_operator_of_torch(name: str) -> None:
    x = torch.linspace(-20, 20, 1_001)
    operator = fused_layers._in_place(ACT2FN[name])
    assert operator is not None
    changed = x.clone()
    result = operator(changed)
    assert result.data_ptr() == changed.data_ptr(), "not in place"
    torch.testing.assert_close(result, ACT2FN[name](x), rtol=1e-5, atol=2e-6)


def test_an_activation_without_an_operator_stays() -> None:
    model = causal_lm("llama", 300)
    for module in model.modules():
        if isinstance(module, LlamaMLP):
            module.act_fn = ACT2FN["quick_gelu"]
    fuse_layers(model)
    assert fused_names(model) == FUSED["llama"] - {"LlamaMLP"}


def test_norms_and_mlps_that_compute_otherwise_stay() -> None:
    """Gemma adds 1 to the weights of its norms; a mixture of experts routes its tokens."""
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
    sizes |= {"vocab_size": 300, "intermediate_size": 64}
    gemma = randomized(Gemma2ForCausalLM(Gemma2Config(head_dim=16, **sizes)))
    mixtral = randomized(MixtralForCausalLM(MixtralConfig(num_local_experts=2, **sizes)))
    for model, stays in ((gemma, {"Gemma2RMSNorm"}), (mixtral, {"MixtralSparseMoeBlock", "MixtralExperts"})):
        before = logits(model)
        assert fuse_layers(model) > 0
        assert not fused_names(model) & stays
        torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)


def test_the_epsilon_of_a_norm_is_compared() -> None:
    class Other(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            variance = hidden_states.pow(2).mean(-1, keepdim=True)
            return self.weight * hidden_states * torch.rsqrt(variance + 10 * self.variance_epsilon)

    assert fuse_layers(nn.Sequential(LlamaRMSNorm(8))) == 1
    assert fuse_layers(nn.Sequential(Other(8))) == 0


def test_rotary_positions_of_another_kind_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    def interleaved(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return q * cos[:, None] - k * sin[:, None], k

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", interleaved)
    model = causal_lm("llama", 300)
    fuse_layers(model)
    assert fused_names(model) == FUSED["llama"] - {"LlamaAttention"}


def test_gradients_are_those_of_the_plain_model() -> None:
    plain, model = (causal_lm("llama", 300) for _ in range(2))
    model.load_state_dict(plain.state_dict())
    fuse_layers(model)
    ids = torch.arange(20)[None]
    for each in (plain, model):
        each(input_ids=ids, labels=ids).loss.backward()
    for weight, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(weight.grad, other.grad)  # type: ignore[arg-type]


def test_a_copy_runs_with_its_own_weights() -> None:
    model = randomized(causal_lm("llama", 300))
    fuse_layers(model)
    copied = deepcopy(model)
    assert fused_names(copied) == FUSED["llama"]
    with torch.no_grad():
        for weight in copied.parameters():
            weight.mul_(1.1)
    plain = randomized(causal_lm("llama", 300))
    plain.load_state_dict(copied.state_dict())
    torch.testing.assert_close(logits(copied), logits(plain), rtol=1e-5, atol=1e-5)


def test_a_forward_that_is_not_the_classes_own_stays() -> None:
    model = causal_lm("llama", 300)
    norm = model.model.norm
    norm.forward = own = lambda x: x  # type: ignore[method-assign,assignment]
    fuse_layers(model)
    unfuse_layers(model)
    assert norm.forward is own


def test_an_encoder_decoder_gives_the_same() -> None:
    config = T5Config(
        vocab_size=300,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    model = randomized(T5ForConditionalGeneration(config))
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        before = model(input_ids=ids, decoder_input_ids=ids).logits
        assert fuse_layers(model) > 0
        after = model(input_ids=ids, decoder_input_ids=ids).logits
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


class GatedNorm(nn.Module):
    """An RMSNorm that takes a gate beside its input, as those of recurrent layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(16)), 1e-6

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon) * self.weight
        return x if gate is None else x * gate.sigmoid()


def test_a_second_input_is_given_to_the_modules_own_forward() -> None:
    norm = GatedNorm().eval()
    x, gate = torch.randn(3, 16), torch.randn(3, 16)
    with torch.inference_mode():
        expected = norm(x, gate)
        assert fuse_layers(norm) == 1
        torch.testing.assert_close(norm(x, gate), expected)
        torch.testing.assert_close(norm(x, gate=gate), expected)
