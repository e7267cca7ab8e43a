"""Checks at load that a model does what the engine relies on, so that none is run wrongly in silence.

In: a LanguageModel. Out: nothing, or a ModelError that says which property is missing. The engine needs a
causal LM that takes a 4D attention mask, position ids and a cache made outside; some architectures ignore
one of them (ALiBi, learned relative positions, recurrent or sliding-window caches), and their numbers would
be plausible and wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.engine import gptj
from pipeline.engine.errors import ModelError
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.logprobs import token_logprobs
from pipeline.engine.model import LanguageModel, Prompt, causal
from pipeline.engine.prefill import PrefilledBatch
from pipeline.engine.unpadding import NAME

_EXACT = 1e-4  # nats, float32
_ROUGH = 0.25  # of the difference that a wrong context makes, for half-precision weights
_TENSOR_CORES = 0.01  # the same, for float32 on a GPU, whose matrix products may be allowed to round to TF32


def check_head(model: LanguageModel) -> bool:
    """Whether the logits are the output embedding of the base model's last hidden states, and nothing more.

    Then logits are computed only where they are needed; a model with soft caps or scales on its logits is
    run whole.
    """
    ids = _ids(model, 4)[None]
    with torch.inference_mode():
        whole = model.model(input_ids=ids, use_cache=False).logits
        lm: Any = model.model
        base, head = lm.base_model, lm.get_output_embeddings()
        if head is None or base is model.model:
            return False
        parts = head(base(input_ids=ids, use_cache=False)[0]).to(whole.device)  # it may be on another GPU
    return bool(parts.shape == whole.shape and torch.allclose(parts, whole, rtol=1e-3, atol=1e-4))


def check_tree(model: LanguageModel) -> None:
    """Compares two branches of a small tree with the same tokens run plainly."""
    prompt, suffix, short, long, mark = np.split(_ids(model, 14).cpu().numpy(), [3, 4, 6, 12])
    try:
        found = _branches(model, prompt, suffix, [short, long], mark)
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        message = f"{_name(model)} does not take a 4D mask, position ids and a cache from outside: {error}"
        raise ModelError(message) from error
    plain = [
        _plain(model, np.concatenate([prompt, short, suffix, short[:1], mark])),
        _plain(model, np.concatenate([prompt, long, suffix, long[:5], mark])),
    ]
    wrong = _plain(model, np.concatenate([prompt, long, suffix, long, mark]))
    effect = float((wrong - plain[1]).abs().max())
    worst = max(float((a - b).abs().max()) for a, b in zip(found, plain, strict=True))
    if not worst <= _limit(model, effect):
        raise ModelError(
            f"{_name(model)}: a branch of the tree is {worst:.2g} nats off the same tokens run plainly. The "
            "architecture does not honour a 4D mask, position ids or a cache given to it; use one that does "
            "(Llama, GPT-NeoX, GPT-2, GPT-J, OPT and Qwen are known to)."
        )


def check_packing(model: LanguageModel) -> bool:
    """Whether tokens may be fed without their padding: the model's attention is replaced by one that can, if
    it can.

    Otherwise padding is fed as well; the results are the same.
    """
    lm: Any = model.model
    before = lm.config._attn_implementation
    padded, joined = _scores(model)
    own = gptj.install(lm, model.handed)
    if before != "sdpa" and not own:
        return False
    try:
        if not own:
            lm.set_attn_implementation(NAME)
        model.packs = True
        check_tree(model)
        worst = float(np.abs(_scores(model)[0] - padded).max())
        same = worst <= _limit(model, float(np.abs(joined - padded).max()))
    except (ModelError, TypeError, ValueError, AttributeError):
        same = False
    if same:
        model.eager = False
    elif own:
        gptj.uninstall(lm)
    else:
        lm.set_attn_implementation(before)
    return same


def _branches(
    model: LanguageModel, prompt: np.ndarray, suffix: np.ndarray, texts: list[np.ndarray], mark: np.ndarray
) -> list[torch.Tensor]:
    """Log-probabilities [V] after the two marks, put behind position 1 of the first text and 5 of the
    second."""
    cache = KVCache()
    ids = torch.from_numpy(prompt).to(model.device)[None]
    depth = torch.arange(len(prompt), device=model.device)[None]
    model.forward(ids, depth, causal(len(prompt), model.device), cache, "prompt", len(prompt))
    tree = PrefilledBatch(model, Prompt(cache, suffix), texts, [{} for _ in texts])
    rows, slots = np.array([0, 1, 1]), np.array([0, 0, 1])
    tree.extend(rows, slots, tree.first + np.array([1, 2, 5]), np.repeat(mark[:1], 3))
    tree.extend(rows, slots, slots, np.repeat(mark[1:], 3))
    logits = torch.cat(list(model.logits(tree.flat(rows, slots))))
    return list(logits.log_softmax(-1)[[0, 2]])


def _scores(model: LanguageModel) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of a sequence's tokens when it is scored beside a shorter one, and when it follows
    that one in the same row."""
    short, long = np.split(_ids(model, 16).cpu().numpy(), [4])
    wanted = np.arange(1, len(long))
    (_, beside), _ = token_logprobs(model, [short, long], [wanted[:3], wanted], "plus")
    [joined], _ = token_logprobs(model, [np.concatenate([short, long])], [len(short) + wanted], "plus")
    return beside, joined


def _limit(model: LanguageModel, effect: float) -> float:
    """Largest difference that is only rounding, in nats; `effect` is that of a wrong context."""
    if model.model.dtype != torch.float32:
        return max(_EXACT, _ROUGH * effect)
    return _EXACT if model.device.type == "cpu" else max(_EXACT, _TENSOR_CORES * effect)


def _plain(model: LanguageModel, ids: np.ndarray) -> torch.Tensor:
    """Log-probabilities [V] after the ids, by one ordinary forward."""
    with torch.inference_mode():
        logits = model.model(input_ids=torch.from_numpy(ids).to(model.device)[None], use_cache=False).logits
    last: torch.Tensor = logits[0, -1].float().log_softmax(-1)
    return last


def _ids(model: LanguageModel, count: int) -> torch.Tensor:
    """Some ids, the same each time, that differ from one another where the vocabulary allows."""
    return torch.arange(1, count + 1, device=model.device) * 7919 % model.vocabulary


def _name(model: LanguageModel) -> str:
    return f"{type(model.model).__name__} ({model.model.config._attn_implementation} attention)"
