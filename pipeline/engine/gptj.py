"""GPT-J, the paper's model, with scaled dot product attention and without padding.

In: a transformers GPT-J, which makes all scores of its attention in float32 and looks no attention up by
name. Out: the same model, whose layers do what packing.py does for others. Weights, rotary positions and
cache stay transformers' own. That this changes nothing is probed at load (probe.check_packing).
"""

from __future__ import annotations

from functools import partial

import torch
from transformers import GPTJForCausalLM, PreTrainedModel
from transformers.models.gptj.modeling_gptj import GPTJAttention

from pipeline.engine.unpadding import Handed, packed_attention


def install(model: PreTrainedModel, handed: Handed) -> bool:
    """Replaces the attention of every layer, which then finds its tokens' places in `handed`; False for other
    architectures."""
    if not isinstance(model, GPTJForCausalLM):
        return False
    for layer in _attentions(model):
        layer._attn = partial(_attend, layer, handed)  # type: ignore[method-assign]
        layer._get_embed_positions = partial(_positions, layer)  # type: ignore[method-assign]
    return True


def uninstall(model: PreTrainedModel) -> None:
    """Gives the layers their own attention back."""
    for layer in _attentions(model):
        layer.__dict__.pop("_attn", None)
        layer.__dict__.pop("_get_embed_positions", None)


def _attentions(model: PreTrainedModel) -> list[GPTJAttention]:
    return [part for part in model.modules() if isinstance(part, GPTJAttention)]


def _positions(layer: GPTJAttention, position_ids: torch.Tensor) -> torch.Tensor:
    """The table of rotary positions, seen by every row; transformers' layer copies it for each of them."""
    layer.embed_positions = layer.embed_positions.to(position_ids.device)  # type: ignore[assignment]
    return layer.embed_positions.expand(len(position_ids), -1, -1)


def _attend(
    layer: GPTJAttention,
    handed: Handed,
    query: torch.Tensor,  # [B, H, Q, E], or [1, H, M, E] with places
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, None]:
    """Shapes are packing.packed_attention's; out comes [B, H, Q, E]."""
    places = handed.places and handed.places.to(query.device)
    scale = 1.0 / layer.scale_attn
    found, _ = packed_attention(layer, query, key, value, attention_mask, places, scaling=scale)
    return found.transpose(1, 2), None
