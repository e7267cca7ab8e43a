"""GPT-J, the paper's model, with scaled dot product attention and unpadding.

In: a transformers GPT-J, which computes attention scores in float32 by hand and looks no
attention up by name. Out: the same model with the attention of unpadding.py in every
layer. Weights, rotary positions and the cache stay transformers' own. checks.py verifies
at load that the results are the same.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor
from transformers import GPTJForCausalLM, PreTrainedModel
from transformers.models.gptj.modeling_gptj import GPTJAttention

from pipeline.engine.unpadding import unpadded_attention


def install(model: PreTrainedModel) -> bool:
    """Replace the attention of every layer; False for other architectures."""
    if not isinstance(model, GPTJForCausalLM):
        return False
    for layer in _attention_layers(model):
        # Set on the instance: the class stays as transformers made it.
        layer._attn = partial(_attend, layer)  # type: ignore[method-assign]
        layer._get_embed_positions = partial(_positions, layer)  # type: ignore[method-assign]
    return True


def uninstall(model: PreTrainedModel) -> None:
    """Give the layers their own attention back."""
    for layer in _attention_layers(model):
        layer.__dict__.pop("_attn", None)
        layer.__dict__.pop("_get_embed_positions", None)


def _attention_layers(model: PreTrainedModel) -> list[GPTJAttention]:
    return [
        module
        for module in model.modules()
        if isinstance(module, GPTJAttention)
    ]


def _positions(layer: GPTJAttention, position_ids: Tensor) -> Tensor:
    """The table of rotary positions as a view per row; transformers copies it per row."""
    table = layer.embed_positions.to(position_ids.device)
    layer.embed_positions = table  # type: ignore[assignment]
    return table.expand(len(position_ids), -1, -1)


def _attend(
    layer: GPTJAttention,
    query: Tensor,  # [B, H, Q, E], or [1, H, M, E] unpadded
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, None]:  # [B, H, Q, E]
    # GPT-J divides scores by scale_attn; sdpa multiplies them.
    scale = 1.0 / layer.scale_attn
    output, _ = unpadded_attention(
        layer, query, key, value, attention_mask, scaling=scale
    )
    return output.transpose(1, 2), None
