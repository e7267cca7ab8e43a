"""Memory profiling: how many tokens a forward may have on the GPU that the model is on.

In: an engine. Out: a number for its `max_batch_tokens`, which bounds the padded tokens of a
forward and the cache slots held at once. Profiling runs sample and score with few and with
many texts of one length: peak memory then grows linearly with the tokens, and the free memory
says where to stop. A process that shares its GPU is held to its share of the memory, and
counts only that as free. Should a forward run out of memory all the same, its caller halves
`max_batch_tokens` (LanguageModel.shrink).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from pipeline.engine.errors import ModelError
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.logprobs import token_logprobs
from pipeline.engine.model import LanguageModel, PromptCache, causal_mask
from pipeline.engine.prefill import PrefilledBatch
from pipeline.engine.sampler import invert_cdf
from pipeline.engine.tree_attention import TreeBatch
from pipeline.engine.usage import Usage

# Safety margin: a profiling run does not cover every allocation.
_USABLE_SHARE = 0.85
_MAX_TOKENS = 2**18
# What a process takes of a GPU beside the memory that torch manages: its context.
_CONTEXT_BYTES = 512 * 2**20
# Sizes of a profiling run: tokens of the prompt and of a text, positions of a text, and
# steps of drawing, with which the cache outgrows its first size.
_PROMPT_TOKENS, _TEXT_TOKENS = 256, 384
_POSITIONS, _STEPS = 20, 5
# Draws per text where the caller names no number: the paper's k * m for the calculator.
PAPER_DRAWS = 20 * 10
# Texts of a batch in the small run and in the large one; a run has two batches.
_FEW_TEXTS, _MANY_TEXTS = 2, 6


def limit_to_share(share: float) -> None:
    """Hold this process to `share` of its GPU's memory; below 1, others have the rest.

    Raises ModelError for a share that leaves nothing.
    """
    if share >= 1:
        return
    device = torch.cuda.current_device()
    _, total = torch.cuda.mem_get_info(device)
    # The contexts of all processes stand in the same memory.
    usable = share * total - _CONTEXT_BYTES
    if usable <= 0:
        raise ModelError(
            f"model.gpus = {share:g}: this share of the GPU's {total / 2**30:.1f} GiB leaves "
            "no room for a model. Raise it (ray.gpus_per_actor on Ray) and use fewer processes"
        )
    torch.cuda.set_per_process_memory_fraction(usable / total, device)


def profile_max_batch_tokens(
    model: LanguageModel, draws: int = PAPER_DRAWS
) -> int:
    """Most tokens of a forward, padding included, of a model on one or several GPUs, with up
    to `draws` draws of a text."""
    devices = {weight.device for weight in model.model.parameters()}
    # Libraries allocate their workspaces once, in the first run.
    run_profile(model, 1, draws)
    peak_bytes: dict[int, dict[torch.device, int]] = {}
    for texts in (_FEW_TEXTS, _MANY_TEXTS):
        before = {device: _reset_peak(device) for device in devices}
        tokens = run_profile(model, texts, draws)
        peak_bytes[tokens] = {
            device: torch.cuda.max_memory_allocated(device) - before[device]
            for device in devices
        }
    # The GPU with the least room decides.
    limits = []
    for device in devices:
        peaks = {tokens: peak[device] for tokens, peak in peak_bytes.items()}
        limits.append(fitting_batch_tokens(peaks, _free_bytes(device)))
    return min(limits)


def fitting_batch_tokens(peak_bytes: Mapping[int, int], free_bytes: int) -> int:
    """Tokens that fit the free memory, from the peak bytes of two numbers of tokens.

    Not less than the smaller of the two, and at most _MAX_TOKENS.
    """
    (few, low), (many, high) = sorted(peak_bytes.items())
    # The line through both peaks: bytes per token, and bytes whatever the tokens.
    per_token = max(1.0, (high - low) / (many - few))
    fixed = max(0.0, low - per_token * few)
    usable = _USABLE_SHARE * free_bytes
    fitting = (usable - fixed) / per_token
    return int(min(max(fitting, few), _MAX_TOKENS))


def run_profile(
    model: LanguageModel, texts: int, draws: int = PAPER_DRAWS
) -> int:
    """Sample from two batches of `texts` texts, and score sequences of the same size.

    The second batch is admitted to the first; then a few tokens of `draws` draws of each
    text follow.
    Returns the cached slots. The usage of the model stays as it was.
    """
    usage = Usage(model.usage)
    max_batch_tokens = model.max_batch_tokens
    text_tokens = min(_TEXT_TOKENS, model.max_positions // 3)
    tree = _contexts(model, texts, text_tokens)
    other = _contexts(model, texts, text_tokens)
    tree.admit(other)
    tokens = tree.cached_slots
    parents = min(_POSITIONS, text_tokens)
    _draw(model, tree, 2 * texts, parents, draws)
    # As many tokens in sequences to score as the contexts have.
    sequence = np.arange(text_tokens) % model.vocabulary_size
    sequences = [sequence] * (tokens // text_tokens)
    last_five = np.arange(text_tokens - 5, text_tokens)
    wanted = [last_five] * len(sequences)
    model.max_batch_tokens = tokens
    token_logprobs(model, sequences, wanted, "plus")
    # Nothing of this was work on a text.
    model.max_batch_tokens = max_batch_tokens
    model.usage = usage
    return tokens


def _draw(
    model: LanguageModel,
    tree: TreeBatch,
    texts: int,
    parents: int,
    draws: int,
) -> None:
    """A few steps of all draws of each text, at its first `parents` slots."""
    text = np.repeat(np.arange(texts), draws)
    slot = np.tile(np.arange(draws), texts)
    ids = slot % model.vocabulary_size
    parent = slot % parents
    for _ in range(_STEPS):
        tree.extend(text, slot, parent, ids)
        parent = slot
        for logits in tree.logits(text, slot):
            u = logits.new_zeros(len(logits), 1, dtype=torch.float64)
            invert_cdf(logits, u)


def _contexts(
    model: LanguageModel,
    texts: int,
    text_tokens: int,
) -> PrefilledBatch:
    """A prefilled batch of so many texts, branched at some positions."""
    prompt_tokens = min(_PROMPT_TOKENS, model.max_positions // 4)
    ids = np.arange(texts * text_tokens).reshape(texts, text_tokens)
    tree = PrefilledBatch(
        model,
        _prompt(model, prompt_tokens),
        list(ids % model.vocabulary_size),
        [Usage() for _ in range(texts)],
    )
    tree.api_probabilities()
    positions = min(_POSITIONS, text_tokens)
    text = np.repeat(np.arange(texts), positions)
    tree.branch(text, np.tile(np.arange(positions), texts))
    return tree


def _prompt(model: LanguageModel, tokens: int) -> PromptCache:
    cache = KVCache()
    position_ids = torch.arange(tokens, device=model.device)[None]
    ids = position_ids % model.vocabulary_size
    mask = causal_mask(tokens, model.device)
    model.forward(ids, position_ids, mask, cache, "prompt", [tokens])
    return PromptCache(cache, np.arange(4))


def _reset_peak(device: torch.device) -> int:
    """Reset the peak of `device`; returns the bytes allocated now."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _free_bytes(device: torch.device) -> int:
    """Bytes that this process may still take. Others that share the GPU take theirs later:
    what is free now is more than this process's share."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    share = torch.cuda.get_per_process_memory_fraction(device)
    own = int(share * total) - torch.cuda.memory_reserved(device)
    return min(free, own)
