"""Checks at load that a model does what the engine relies on; a model that does not is refused.

In: a LanguageModel. Out: nothing, or a ModelError that names the missing property. The
engine needs a causal LM that honours a 4D attention mask, position ids and a KV cache made
outside. Some architectures ignore one of them (ALiBi, learned relative positions, recurrent
caches, windows); their numbers would be plausible and wrong. Models are run past every
length, within reach, at which their configuration says that something may change.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from pipeline.engine import gptj
from pipeline.engine.errors import ModelError, first_line
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.last_layer import leave_out_unwanted
from pipeline.engine.limits import REACH, named_lengths, text_config
from pipeline.engine.logprobs import token_logprobs
from pipeline.engine.model import LanguageModel, PromptCache, causal_mask
from pipeline.engine.prefill import PrefilledBatch
from pipeline.engine.ragged_attention import is_supported
from pipeline.engine.unpadding import ATTENTION
from pipeline.engine.usage import Usage
from tools_service.base.fused_layers import fuse_layers, unfuse_layers

logger = logging.getLogger(__name__)

# Largest difference that is only rounding, in nats, in float32.
_EXACT = 1e-4
# In half precision: this share of the difference that a wrong context makes.
_ROUGH_SHARE = 0.25
# The same for float32 on a GPU, whose matrix products may be allowed to round to TF32.
_TF32_SHARE = 0.01
# The same for long sequences in float32, where rounding adds up.
_LONG_SHARE = 0.01
# Past a length at which something may change, a check runs so many tokens more.
_PAST = 16
# The same for cache slots, of which most stay empty: they cost memory and no time.
_REACHED_SLOTS = 16_384
# Slots behind all positions are tried for models that have no more positions than this.
_REACHED_POSITIONS = 4_096
# Tokens of the prompt, its suffix, a short text, a long text and a mark in the small tree;
# and in the smallest, for a model with a tiny window. Contexts have up to 18 and 8 tokens.
_TREE, _SMALLEST_TREE = (3, 1, 2, 6, 2), (1, 1, 1, 2, 2)
_TREE_CONTEXT, _SMALLEST_CONTEXT = 18, 8
# What transformers raises for arguments that an architecture does not take.
_UNSUPPORTED = (TypeError, ValueError, RuntimeError, AttributeError)


def check_head(model: LanguageModel) -> bool:
    """Whether logits are the output embedding of the last hidden states, and nothing more.

    Then logits are computed only where they are needed. A model with soft caps or scales on
    its logits is run whole.
    """
    ids = _ids(model, 4)[None]
    lm: Any = model.model
    base, head = lm.base_model, lm.get_output_embeddings()
    # A model without a base model or a head of its own cannot be taken apart.
    if head is None or base is lm:
        return False
    with torch.inference_mode():
        whole = lm(input_ids=ids, use_cache=False).logits
        hidden_states = base(input_ids=ids, use_cache=False)[0]
        separate = head(hidden_states)
    # The head may be on another GPU.
    separate = separate.to(whole.device)
    if separate.shape != whole.shape:
        return False
    return torch.allclose(separate, whole, rtol=1e-3, atol=1e-4)


def check_weights(model: LanguageModel) -> None:
    """Raises ModelError, which names a weight, if one is NaN or infinite."""
    for name, weight in model.model.named_parameters():
        if (
            weight.numel()
            and not torch.stack(weight.aminmax()).isfinite().all()
        ):
            raise ModelError(
                f"{_name(model)}: {name} holds NaN or infinite weights: the file is "
                "damaged, or was saved in a type with too small a range; get it again"
            )


def check_layers(model: LanguageModel) -> bool:
    """Fuse norms, MLPs and rotary positions; False, and none fused, if scores change."""
    ids = _ids(model, min(16, model.max_positions)).cpu().numpy()
    plain = _plain(model, ids)
    # Without the first token: how far off a wrong context would be.
    effect = _distance(_plain(model, ids[1:]), plain)
    if not fuse_layers(model.model):
        return False
    worst = _distance(_plain(model, ids), plain)
    same = worst <= _tolerance(model, effect)
    if not same:
        unfuse_layers(model.model)
    return same


def check_tree(model: LanguageModel) -> None:
    """Compare branches of a small tree with the same tokens run plainly."""
    limit = model.max_positions
    if limit < _SMALLEST_CONTEXT:
        raise ModelError(
            f"{_name(model)}: a context of {limit} tokens has no room for a call"
        )
    _compare_tree(model, _TREE if limit >= _TREE_CONTEXT else _SMALLEST_TREE)


def _compare_tree(model: LanguageModel, sizes: tuple[int, ...]) -> None:
    """The same for a tree with so many tokens in each of its parts."""
    ends = np.cumsum(sizes)
    ids = _ids(model, ends[-1]).cpu().numpy()
    prompt, suffix, short, long, mark = np.split(ids, ends[:-1])
    try:
        branches = _branches(model, prompt, suffix, [short, long], mark)
    except _UNSUPPORTED as error:
        raise ModelError(
            f"{_name(model)} does not take a 4D mask, position ids and a cache from "
            f"outside: {first_line(error)}"
        ) from error
    # The same contexts as plain sequences.
    first = np.concatenate([prompt, short, suffix, short[:-1], mark])
    second = np.concatenate([prompt, long, suffix, long[:-1], mark])
    plain = [_plain(model, first), _plain(model, second)]
    # With one token more: how far off a wrong context would be.
    longer = np.concatenate([prompt, long, suffix, long, mark])
    wrong = _plain(model, longer)
    effect = _distance(wrong, plain[1])
    worst = max(map(_distance, branches, plain))
    if not worst <= _tolerance(model, effect):
        raise ModelError(
            f"{_name(model)}: a branch of the tree is {worst:.2g} nats off the same tokens "
            "run plainly. The architecture does not honour a 4D mask, position ids or a "
            "cache given to it; use one that does (Llama, GPT-NeoX, GPT-2, GPT-J, OPT and "
            "Qwen are known to)."
        )


def check_lengths(model: LanguageModel) -> None:
    """Run the model past every length that its configuration names, with and without
    padding, as a tree and in sequences, a short one beside a long one.

    Raises ModelError if the engine and a plain forward differ.
    """
    named = named_lengths(model.model.config)
    _check_slots(model, named)
    reached = [length for length in named if length <= REACH]
    length = min(model.max_positions, max(reached, default=0) + _PAST)
    if not reached or length <= _TREE_CONTEXT:
        return
    # Prompt, text, suffix and text; the context ends with a mark of two tokens.
    text = length // 3
    prompt = length - 2 * text - 3
    can_unpad = model.can_unpad
    for model.can_unpad in {can_unpad, False}:
        _compare_sequences(model, length)
        _compare_tree(model, (prompt, 1, 2, text, 2))
    model.can_unpad = can_unpad


def _compare_sequences(model: LanguageModel, length: int) -> None:
    """Compare scores of a short and of a long sequence, in one batch, with plain ones."""
    ids = _ids(model, length).cpu().numpy()
    short = ids[: length // 4]
    wanted = [np.arange(1, len(sequence)) for sequence in (short, ids)]
    found, _ = token_logprobs(model, [short, ids], wanted, "plus")
    plain = [_plain_scores(model, sequence) for sequence in (short, ids)]
    # Without its first half: how far off a wrong context would be.
    half = length // 2
    without = _plain_scores(model, ids[half:])
    effect = _distance(without, plain[1][half:])
    worst = max(
        _distance(torch.from_numpy(scores), expected)
        for scores, expected in zip(found, plain, strict=True)
    )
    if not worst <= _tolerance(model, effect, _LONG_SHARE):
        raise ModelError(
            f"{_name(model)}: in a context of {length} tokens, scores are {worst:.2g} nats "
            "off the same tokens run plainly. Its attention or its positions change with "
            "the length in a way that the configuration does not say; use another model"
        )


def _check_slots(model: LanguageModel, named: list[int]) -> None:
    """Compare tokens far behind their prompt in the cache with the same run plainly.

    Raises ModelError for a model that takes the number of a cache slot for a position.
    """
    reached = [length for length in named if length <= _REACHED_SLOTS]
    # Branches take slots of their own: a tree has more slots than positions.
    if model.max_positions <= _REACHED_POSITIONS:
        reached.append(model.max_positions)
    if not reached:
        return
    first_slot = max(reached) + _PAST
    ids = _ids(model, 5)
    cache = KVCache()
    mask = causal_mask(5, model.device)
    position_ids = torch.arange(5, device=model.device)[None]
    prompt, mark = slice(0, 3), slice(3, 5)
    model.forward(
        ids[None, prompt],
        position_ids[:, prompt],
        mask[:, prompt, prompt],
        cache,
        "prompt",
        [3],
    )
    # Empty slots, which no token sees.
    cache.reserve(first_slot + 2)
    cache.length = first_slot
    empty = mask.new_zeros(1, 2, first_slot - 3)
    far_mask = torch.cat([mask[:, mark, prompt], empty, mask[:, mark, mark]], 2)
    hidden_states = model.forward(
        ids[None, mark], position_ids[:, mark], far_mask, cache, "decode", [2]
    )
    [logits] = model.logits(hidden_states[0, -1:])
    plain = _plain(model, ids.cpu().numpy())
    without = _plain(model, ids[1:].cpu().numpy())
    worst = _distance(logits[0].log_softmax(-1), plain)
    if not worst <= _tolerance(model, _distance(without, plain)):
        raise ModelError(
            f"{_name(model)}: tokens {first_slot} slots down the cache are {worst:.2g} "
            "nats off the same tokens run plainly. The architecture takes cache slots for "
            "positions; use another model"
        )


def check_unpadding(model: LanguageModel) -> bool:
    """Whether tokens may be fed without padding; if so, the model's attention is replaced.

    Otherwise padding is fed as well, and the results are the same.
    """
    lm: Any = model.model
    attention = text_config(lm.config)._attn_implementation
    padded, joined = _score_pair(model)
    effect = _distance(joined, padded)
    is_gptj = gptj.install(lm)
    if attention != "sdpa" and not is_gptj:
        return False
    # Try it: branches and scores must come out as before, or the old attention returns.
    try:
        if not is_gptj:
            _set_attention(lm, ATTENTION)
        model.can_unpad = True
        check_tree(model)
        unpadded, _ = _score_pair(model)
        worst = _distance(unpadded, padded)
        same = worst <= _tolerance(model, effect)
    except (ModelError, *_UNSUPPORTED):
        same = False
    if same:
        model.eager_attention = False
    elif is_gptj:
        gptj.uninstall(lm)
    else:
        _set_attention(lm, attention)
    return same


def check_ragged(model: LanguageModel) -> bool:
    """Whether sequences may be scored by ragged attention; otherwise attention pads them.

    An operator that fails, as in a build of torch without it, is not used.
    """
    dtype = model.model.dtype
    if not model.can_unpad or not is_supported(model.device, dtype):
        return False
    padded, joined = _score_pair(model)
    model.ragged_attention = True
    try:
        ragged, _ = _score_pair(model)
    except _UNSUPPORTED as error:
        logger.warning("scoring pads attention: %s", first_line(error))
        return False
    finally:
        model.ragged_attention = False
    tolerance = _tolerance(model, _distance(joined, padded))
    return _distance(ragged, padded) <= tolerance


def check_prompt_sharing(model: LanguageModel) -> bool:
    """Whether rows may share the keys and values of their prompt.

    Otherwise each row holds a copy, and the results are the same.
    """
    if not model.can_unpad:
        return False
    try:
        model.can_share_prompts = True
        check_tree(model)
    except (ModelError, *_UNSUPPORTED):
        model.can_share_prompts = False
    return model.can_share_prompts


def check_last_layer(model: LanguageModel) -> bool:
    """Whether the last layer may leave out tokens whose hidden states are not wanted.

    Otherwise it runs them, too, and the results are the same.
    """
    ids = _ids(model, min(16, model.max_positions))[None]
    lm: Any = model.model
    beside, joined = _score_pair(model)
    try:
        if not leave_out_unwanted(
            lm, lambda: lm(input_ids=ids, use_cache=False)
        ):
            return False
        model.can_leave_out_unwanted = True
        check_tree(model)
        worst = max(map(_distance, _score_pair(model), (beside, joined)))
    except (ModelError, LookupError, AssertionError, *_UNSUPPORTED):
        worst = np.inf
    finally:
        model.can_leave_out_unwanted = False
    return worst <= _tolerance(model, _distance(joined, beside))


def _set_attention(lm: Any, attention: str) -> None:
    """Set the attention of the text model; a vision or audio model keeps its own."""
    text = text_config(lm.config)
    parts = [
        name
        for name in lm.config.sub_configs
        if getattr(lm.config, name, None) is text
    ]
    lm.set_attn_implementation(
        dict.fromkeys(parts, attention) if parts else attention
    )


def _branches(
    model: LanguageModel,
    prompt: ndarray,
    suffix: ndarray,
    texts: list[ndarray],
    mark: ndarray,
) -> list[Tensor]:
    """Log-probabilities [V] after the two tokens of `mark`, put behind the last position
    of each text."""
    cache = KVCache()
    ids = torch.from_numpy(prompt).to(model.device)
    position_ids = torch.arange(len(prompt), device=model.device)
    mask = causal_mask(len(prompt), model.device)
    tokens = [len(prompt)]
    model.forward(ids[None], position_ids[None], mask, cache, "prompt", tokens)
    usage = [Usage() for _ in texts]
    tree = PrefilledBatch(model, PromptCache(cache, suffix), texts, usage)
    # Three branches: at the last position of each text, and at an earlier one of the
    # second. The last branch must not see that one.
    last = [len(ids) - 1 for ids in texts]
    text = np.array([0, 1, 1])
    slot = np.array([0, 0, 1])
    position = np.array([last[0], last[1] // 2, last[1]])
    first_mark, second_mark = mark
    parent = tree.first_slot[text] + position
    tree.extend(text, slot, parent, np.full(3, first_mark))
    tree.extend(text, slot, slot, np.full(3, second_mark))
    hidden_states = tree.frontier(text, slot)
    logits = torch.cat(list(model.logits(hidden_states)))
    first, _, second = logits.log_softmax(-1)
    return [first, second]


def _score_pair(model: LanguageModel) -> tuple[Tensor, Tensor]:
    """Log-probabilities of a sequence's tokens when it is scored beside a shorter one, and
    when it follows that one in the same row."""
    ids = _ids(model, min(16, model.max_positions)).cpu().numpy()
    short, long = np.split(ids, [len(ids) // 4])
    wanted = np.arange(1, len(long))
    wanted_beside = wanted[: len(short) - 1]
    (_, beside), _ = token_logprobs(
        model, [short, long], [wanted_beside, wanted], "plus"
    )
    both = np.concatenate([short, long])
    wanted_behind = len(short) + wanted
    [joined], _ = token_logprobs(model, [both], [wanted_behind], "plus")
    return torch.from_numpy(beside), torch.from_numpy(joined)


def _distance(logprobs: Tensor, expected: Tensor) -> float:
    """The largest difference, in nats."""
    return float((logprobs - expected).abs().max())


def _tolerance(
    model: LanguageModel,
    effect: float,
    float32_share: float = 0.0,
) -> float:
    """Largest difference that is only rounding, in nats; `effect` is a wrong context's."""
    share = float32_share
    if model.model.dtype != torch.float32:
        share = _ROUGH_SHARE
    elif model.device.type != "cpu":
        share = max(share, _TF32_SHARE)
    return max(_EXACT, share * effect)


def _plain(model: LanguageModel, ids: ndarray) -> Tensor:
    """Log-probabilities [V] after the ids, by one ordinary forward."""
    row = torch.from_numpy(ids).to(model.device)
    with torch.inference_mode():
        output = model.model(input_ids=row[None], use_cache=False)
    last = output.logits[0, -1].float()
    logprobs: Tensor = last.log_softmax(-1)
    return logprobs


def _plain_scores(model: LanguageModel, ids: ndarray) -> Tensor:
    """Log-probabilities [T - 1] of all ids [T] but the first, by one ordinary forward."""
    row = torch.from_numpy(ids).to(model.device)
    with torch.inference_mode():
        [logits] = model.model(input_ids=row[None], use_cache=False).logits
    scores = []
    # In pieces: in float32, the logits of all tokens would take twice the memory.
    parts = torch.split(logits[:-1], REACH // 8)
    for part, targets in zip(
        parts, torch.split(row[1:], REACH // 8), strict=True
    ):
        target_logits = part.float().gather(1, targets[:, None])[:, 0]
        scores.append(target_logits - part.float().logsumexp(1))
    return torch.cat(scores).double().cpu()


def _ids(model: LanguageModel, count: int) -> Tensor:
    """Fixed ids that differ from one another where the vocabulary allows."""
    numbers = torch.arange(1, count + 1, device=model.device)
    return numbers * 7919 % model.vocabulary_size


def _name(model: LanguageModel) -> str:
    attention = model.model.config._attn_implementation
    return f"{type(model.model).__name__} ({attention} attention)"
