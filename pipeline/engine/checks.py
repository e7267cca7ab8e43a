"""Checks at load that a model does what the engine relies on; a model that does not is refused.

In: a LanguageModel. Out: nothing, or a ModelError that names the missing property. The
engine needs a causal LM that honours a 4D attention mask, position ids and a KV cache made
outside. Some architectures ignore one of them (ALiBi, learned relative positions, recurrent
or sliding-window caches); their numbers would be plausible and wrong.

Shapes: V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from pipeline.engine import gptj
from pipeline.engine.errors import ModelError
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.logprobs import token_logprobs
from pipeline.engine.model import LanguageModel, PromptCache, causal_mask
from pipeline.engine.prefill import PrefilledBatch
from pipeline.engine.unpadding import ATTENTION
from pipeline.engine.usage import Usage

# Largest difference that is only rounding, in nats, in float32.
_EXACT = 1e-4
# In half precision: this share of the difference that a wrong context makes.
_ROUGH_SHARE = 0.25
# The same for float32 on a GPU, whose matrix products may be allowed to round to TF32.
_TF32_SHARE = 0.01
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


def check_tree(model: LanguageModel) -> None:
    """Compare two branches of a small tree with the same tokens run plainly."""
    ids = _ids(model, 14).cpu().numpy()
    prompt, suffix, short, long, mark = np.split(ids, [3, 4, 6, 12])
    try:
        branches = _branches(model, prompt, suffix, [short, long], mark)
    except _UNSUPPORTED as error:
        raise ModelError(
            f"{_name(model)} does not take a 4D mask, position ids and a cache from "
            f"outside: {error}"
        ) from error
    # The same contexts as plain sequences.
    first = np.concatenate([prompt, short, suffix, short[:1], mark])
    second = np.concatenate([prompt, long, suffix, long[:5], mark])
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


def check_unpadding(model: LanguageModel) -> bool:
    """Whether tokens may be fed without padding; if so, the model's attention is replaced.

    Otherwise padding is fed as well, and the results are the same.
    """
    lm: Any = model.model
    attention = lm.config._attn_implementation
    padded, joined = _score_pair(model)
    effect = _distance(joined, padded)
    is_gptj = gptj.install(lm)
    if attention != "sdpa" and not is_gptj:
        return False
    # Try it: branches and scores must come out as before, or the old attention returns.
    try:
        if not is_gptj:
            lm.set_attn_implementation(ATTENTION)
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
        lm.set_attn_implementation(attention)
    return same


def _branches(
    model: LanguageModel,
    prompt: ndarray,
    suffix: ndarray,
    texts: list[ndarray],
    mark: ndarray,
) -> list[Tensor]:
    """Log-probabilities [V] after the two tokens of `mark`, put behind position 1 of the
    first text and position 5 of the second."""
    cache = KVCache()
    ids = torch.from_numpy(prompt).to(model.device)
    position_ids = torch.arange(len(prompt), device=model.device)
    mask = causal_mask(len(prompt), model.device)
    tokens = [len(prompt)]
    model.forward(ids[None], position_ids[None], mask, cache, "prompt", tokens)
    usage = [Usage() for _ in texts]
    tree = PrefilledBatch(model, PromptCache(cache, suffix), texts, usage)
    # Three branches: at position 1 of the first text, at 2 and 5 of the second. The
    # branch at 5 must not see the one at 2.
    text = np.array([0, 1, 1])
    slot = np.array([0, 0, 1])
    position = np.array([1, 2, 5])
    first_mark, second_mark = mark
    tree.extend(text, slot, tree.first_slot + position, np.full(3, first_mark))
    tree.extend(text, slot, slot, np.full(3, second_mark))
    hidden_states = tree.frontier(text, slot)
    logits = torch.cat(list(model.logits(hidden_states)))
    first, _, second = logits.log_softmax(-1)
    return [first, second]


def _score_pair(model: LanguageModel) -> tuple[Tensor, Tensor]:
    """Log-probabilities of a sequence's tokens when it is scored beside a shorter one, and
    when it follows that one in the same row."""
    ids = _ids(model, 16).cpu().numpy()
    short, long = np.split(ids, [4])
    wanted = np.arange(1, len(long))
    (_, beside), _ = token_logprobs(
        model, [short, long], [wanted[:3], wanted], "plus"
    )
    both = np.concatenate([short, long])
    wanted_behind = len(short) + wanted
    [joined], _ = token_logprobs(model, [both], [wanted_behind], "plus")
    return torch.from_numpy(beside), torch.from_numpy(joined)


def _distance(logprobs: Tensor, expected: Tensor) -> float:
    """The largest difference, in nats."""
    return float((logprobs - expected).abs().max())


def _tolerance(model: LanguageModel, effect: float) -> float:
    """Largest difference that is only rounding, in nats; `effect` is a wrong context's."""
    if model.model.dtype != torch.float32:
        return max(_EXACT, _ROUGH_SHARE * effect)
    if model.device.type == "cpu":
        return _EXACT
    return max(_EXACT, _TF32_SHARE * effect)


def _plain(model: LanguageModel, ids: ndarray) -> Tensor:
    """Log-probabilities [V] after the ids, by one ordinary forward."""
    row = torch.from_numpy(ids).to(model.device)
    with torch.inference_mode():
        output = model.model(input_ids=row[None], use_cache=False)
    last = output.logits[0, -1].float()
    logprobs: Tensor = last.log_softmax(-1)
    return logprobs


def _ids(model: LanguageModel, count: int) -> Tensor:
    """Fixed ids that differ from one another where the vocabulary allows."""
    numbers = torch.arange(1, count + 1, device=model.device)
    return numbers * 7919 % model.vocabulary_size


def _name(model: LanguageModel) -> str:
    attention = model.model.config._attn_implementation
    return f"{type(model.model).__name__} ({attention} attention)"
