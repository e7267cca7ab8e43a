"""The longest context of a model, by its configuration, and what becomes of architectures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from bench.architectures import TOLERANCE, VARIANTS, try_model, worst_difference
from bench.fixtures.small_models import causal_lm, tokenizer
from bench.fixtures.tiny_models import tiny_config, tiny_model
from pipeline.engine.errors import ModelError
from pipeline.engine.limits import REACH, UNLIMITED, max_positions, named_lengths
from pipeline.engine.loading import prepare_language_model
from pipeline.engine.logprobs import token_logprobs

pytestmark = pytest.mark.unit

LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
FULL = ["full_attention"] * 2
SLIDES = ["sliding_attention", "full_attention"]
LLAMA4 = {"attn_temperature_tuning": False, "no_rope_layers": [1, 1]}


@pytest.mark.parametrize(
    ("model_type", "fields", "limit"),
    [
        ("llama", {}, 128),
        ("gpt2", {}, 128),
        ("opt", {}, 128),
        ("bloom", {}, UNLIMITED),
        ("mistral", {}, 16),
        ("mistral", {"sliding_window": None}, 128),
        # Fields that the class does not read change nothing.
        ("mistral", {"use_sliding_window": False}, 16),
        ("mistral", {"layer_types": FULL}, 16),
        ("llama", {"sliding_window": 16}, 128),
        ("llama", {"sliding_window": REACH + 1, "max_position_embeddings": 2 * REACH}, REACH + 1),
        ("gemma2", {}, 16),
        ("gemma3_text", {}, 16),
        ("gemma3", {}, 16),
        ("gemma3", {"sliding_window": 24}, 24),
        ("gemma3_text", {"layer_types": FULL}, 128),
        ("cohere2", {}, 16),
        ("gpt_oss", {}, 16),
        ("gpt_neo", {}, 16),
        ("gpt_neo", {"attention_types": [[["global"], 2]]}, 128),
        ("llama4_text", LLAMA4, 16),
        ("llama4_text", LLAMA4 | {"layer_types": FULL}, 128),
        ("qwen2", {}, 128),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, 16),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}, 128),
        ("qwen2", {"use_sliding_window": True, "layer_types": FULL}, 128),
        ("qwen2_moe", {}, 128),
        ("qwen3", {"use_sliding_window": True, "layer_types": SLIDES}, 16),
        ("phi3", {}, 128),
        ("phi3", {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 32}}, 32),
        ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 48}, 48),
        ("llama", {"rope_parameters": DYNAMIC}, 128),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}, 128),
    ],
)
def test_the_limit_is_the_shortest_length_at_which_the_model_changes(
    model_type: str, fields: dict[str, Any], limit: int
) -> None:
    assert max_positions(tiny_config(model_type, **fields)) == limit


@pytest.mark.parametrize(
    ("model_type", "changes", "said"),
    [
        ("gemma2", {"sliding_window": None}, "sliding_attention .*no sliding_window: add it"),
        ("gemma3", {"sliding_window": None}, "sliding_attention .*no sliding_window: add it"),
        ("cohere2", {"sliding_window": 0}, "sliding_attention .*no sliding_window: add it"),
        ("gpt_oss", {"sliding_window": -1}, "sliding_attention .*no sliding_window: add it"),
        (
            "llama4_text",
            {"attention_chunk_size": None},
            "chunked_attention .*no attention_chunk_size: add it",
        ),
        ("llama", {"rope_parameters": dict(LONGROPE)}, "longrope.*original_max_position_embeddings"),
    ],
)
def test_layers_with_a_window_that_the_configuration_does_not_name_are_refused(
    model_type: str, changes: dict[str, Any], said: str
) -> None:
    config = tiny_config(model_type)
    for name, value in changes.items():
        object.__setattr__(config.get_text_config(), name, value)
    with pytest.raises(ModelError, match=said):
        max_positions(config)


@pytest.mark.parametrize(
    "model_type",
    [
        "mamba",
        "mamba2",
        "falcon_mamba",
        "jamba",
        "zamba",
        "zamba2",
        "bamba",
        "falcon_h1",
        "nemotron_h",
        "zaya",
        "qwen3_next",
        "qwen3_5",
        "recurrent_gemma",
        "granitemoehybrid",
        "minimax",
        "lfm3",
        "olmo_hybrid",
        "bailing_hybrid",
        "kimi_linear",
        "inkling_text",
    ],
)
def test_layers_with_a_state_are_refused_by_the_configuration_alone(model_type: str) -> None:
    # As it is: some types are hard to shrink, and nothing is made of it.
    config = CONFIG_MAPPING[model_type]()
    with pytest.raises(ModelError, match=r"keep a state in place of keys and values"):
        max_positions(config)


def test_lengths_of_rotations_that_never_change_are_not_named() -> None:
    scaled = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0}
    scaled |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    assert named_lengths(tiny_config("llama", rope_parameters=scaled)) == []
    assert 16 in named_lengths(tiny_config("llama", sliding_window=16))


@pytest.mark.parametrize(
    ("name", "verdict", "limit"),
    [
        ("llama", "agrees", 128),
        ("gpt2", "agrees", 128),
        ("gptj", "agrees", 128),
        ("gemma3_text", "agrees", 16),
        ("gemma3", "agrees", 16),
        ("phi3, longrope", "agrees", 32),
        ("llama, longrope", "agrees", 32),
        ("llama, dynamic NTK", "agrees", 128),
        ("llama, a window that it never reads", "agrees", 128),
        ("qwen2", "agrees", 128),
        ("qwen2, window", "agrees", 16),
        ("qwen2, window of no layer", "agrees", 128),
        ("mistral", "agrees", 16),
        ("cohere2", "agrees", 16),
        ("gpt_oss", "agrees", 16),
        ("llama4_text, no temperature", "agrees", 16),
        ("llama4_text, layers without rotation", "refused", None),
        ("gpt_neo", "refused", None),
        ("gpt_neo, global layers only", "refused", None),
        ("bloom", "refused", None),
        ("mpt", "refused", None),
        ("falcon, ALiBi", "refused", None),
        ("mamba", "refused", None),
        ("jamba", "refused", None),
        ("lfm2, convolutions", "refused", None),
        ("bert", "refused", None),
        ("bart", "refused", None),
    ],
)
def test_an_architecture_agrees_with_plain_forwards_or_is_refused(
    name: str, verdict: str, limit: int | None
) -> None:
    model_type, fields = VARIANTS.get(name, (name, {}))
    row = try_model(name, model_type, fields)
    assert (row.verdict, row.limit) == (verdict, limit), row.reason
    assert verdict == "agrees" or row.reason


class ChangesAtLength(LlamaForCausalLM):
    """A model that scores tokens in another way from a length on."""

    def forward(self, *args: Any, **inputs: Any) -> Any:
        output = super().forward(*args, **inputs)
        if output.logits.shape[1] > self.config.switch_window and inputs.get("past_key_values") is None:
            output.logits[:, self.config.switch_window :] *= 1.5
        return output

    @property
    def base_model(self) -> Any:
        return self


@pytest.mark.parametrize("switch", [17, 40, 90])
def test_a_model_that_changes_at_a_length_that_it_names_is_refused(switch: int) -> None:
    config = causal_lm("llama", 420).config
    config.switch_window = switch
    torch.manual_seed(0)
    with pytest.raises(ModelError, match="nats off"):
        prepare_language_model(ChangesAtLength(config).eval(), tokenizer("bytes"))


def test_one_long_text_does_not_change_the_scores_of_its_batch() -> None:
    name = "phi3, longrope"
    model = tiny_model(tiny_config(*VARIANTS[name][:1], **VARIANTS[name][1]))
    engine = prepare_language_model(model, tokenizer("bytes"))
    short, long = np.arange(3, 20), np.arange(3, 3 + engine.max_positions)
    wanted = [np.arange(1, len(short)), np.arange(1, len(long))]
    [alone], _ = token_logprobs(engine, [short], wanted[:1], "plus")
    (beside, _), _ = token_logprobs(engine, [short, long], wanted, "plus")
    np.testing.assert_allclose(alone, beside, atol=1e-5)


def test_the_comparison_finds_a_limit_that_is_too_long() -> None:
    engine = prepare_language_model(tiny_model(tiny_config("mistral")), tokenizer("bytes"))
    assert worst_difference(engine) <= TOLERANCE
    engine.max_positions = 64
    assert worst_difference(engine) > 0.01
