"""Models of known shapes with random weights that write calculator calls, made on their device.

In: a shape, a tokenizer, a device and a type. Out: a transformers causal LM. Nothing is read or
downloaded, and no more memory is taken than the weights need. Few of its calls help, so such a model
measures speed, not quality. Tokens beyond the tokenizer's are never part of a call.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bench.fixtures.small_models import teach
from pipeline.syntax.tokenizer import tokenize_continuations
from tools_service.base.checkpoints import empty_model

TAUGHT = " sold [Calculator(48 + 67)] 48 + 67 [Calculator(115 / 5)] on [Calculator(12 * 4)] 12 [Calculator(7"
# The layers whose output is added to the residual stream, as the architectures below call them.
_RESIDUAL = ("o_proj", "down_proj", "out_proj", "fc_out")
# A taught token's logit exceeds the logarithm of the vocabulary's size by so much (nats).
_MARGIN = 3.0

SHAPES: dict[str, Callable[[], Any]] = {
    "gpt2-small": lambda: GPT2Config(tie_word_embeddings=False),
    "gptj-6b": lambda: GPTJConfig(tie_word_embeddings=False),
    # Llama 3.2 1B and Llama 3.1 8B, with an output embedding of its own and a shorter context.
    "llama-1b": lambda: _llama(hidden_size=2_048, intermediate_size=8_192, num_hidden_layers=16),
    "llama-8b": lambda: _llama(hidden_size=4_096, intermediate_size=14_336, num_hidden_layers=32),
}


def _llama(**sizes: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128_256,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8_192,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=False,
        **sizes,
    )


def random_model(
    shape: Callable[[], Any], tokenizer: PreTrainedTokenizerBase, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """A model of a shape on `device`, in `dtype` from the first weight on."""
    torch.manual_seed(0)
    config = shape()
    config.dtype = dtype
    with device:
        model: PreTrainedModel = empty_model(AutoModelForCausalLM, config).eval()
    _scale_residual_layers(model)
    ids = tokenize_continuations(tokenizer, [TAUGHT])[0].ids.tolist()
    teach(model, ids, strength=0.0)  # the embeddings get the size that they are taught with
    teach(model, ids, (log(config.vocab_size) + _MARGIN) / _seen_of_token(model, ids))
    return model


def _scale_residual_layers(model: PreTrainedModel) -> None:
    """Make the layers add less the more of them there are, as GPT-2's initialisation does.

    Without it a deep model would forget the token that it has read, and could not be taught.
    """
    layers = model.config.num_hidden_layers
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in _RESIDUAL:
                weight: Any = module.weight
                weight.mul_((2 * layers) ** -0.5)


def _seen_of_token(model: PreTrainedModel, ids: list[int]) -> float:
    """How long the last hidden states are along the embedding of the token just read."""
    tokens = torch.tensor([ids], device=model.device)
    lm: Any = model
    with torch.inference_mode():
        hidden_states: Tensor = lm.base_model(input_ids=tokens, use_cache=False)[0].float()
        embeddings = lm.get_input_embeddings()(tokens).float()
    along = (hidden_states * torch.nn.functional.normalize(embeddings, dim=-1)).sum(-1)
    return float(along.mean())
