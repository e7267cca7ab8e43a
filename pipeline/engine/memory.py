"""How many tokens one forward may have: measured on the GPU that the model is on.

In: an engine. Out: a number of tokens for its `max_batch_tokens`. Sampling and scoring are rehearsed
with few and with many tokens; memory grows with their number along a line, and the free memory says where to
stop. A forward that finds no room all the same is halved by those who run it (sampling.py, model.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from pipeline.engine.kv_cache import KVCache
from pipeline.engine.logprobs import token_logprobs
from pipeline.engine.model import LanguageModel, Prompt, causal
from pipeline.engine.prefill import PrefilledBatch
from pipeline.engine.sampler import invert_cdf

_SAFE = 0.85  # of the free memory: what is rehearsed is not all there is
_MOST = 2**18
_PROMPT, _TEXT, _BRANCHES = 256, 384, 16  # tokens, tokens, branches of each text
_DRAWS, _STEPS = 64, 2  # nodes of each text while drawing, and for so many tokens
_FEW, _MANY = 2, 6  # texts in a rehearsal, twice


def profile_max_batch_tokens(model: LanguageModel) -> int:
    """Most tokens of a forward, padding included, of a model on one GPU or several."""
    devices = {weight.device for weight in model.model.parameters()}
    run_profile(model, 1)  # libraries take their workspaces once
    peaks = {}
    for texts in (_FEW, _MANY):
        before = {device: _restart(device) for device in devices}
        tokens = run_profile(model, texts)
        peaks[tokens] = {d: torch.cuda.max_memory_allocated(d) - before[d] for d in devices}
    return min(
        fitting({tokens: peak[device] for tokens, peak in peaks.items()}, _free(device)) for device in devices
    )


def fitting(peaks: Mapping[int, int], free: int) -> int:
    """Tokens that fit `free` bytes, from the peaks [bytes] of two numbers of tokens."""
    (few, low), (many, high) = sorted(peaks.items())
    each = max(1.0, (high - low) / (many - few))
    fixed = max(0.0, low - each * few)
    return int(min(max((_SAFE * free - fixed) / each, few), _MOST))


def run_profile(model: LanguageModel, texts: int) -> int:
    """Two batches of contexts, the second joining the draws of the first, some tokens of many draws, and a
    batch of sequences to score; how many tokens the contexts were. Nothing of it is counted as spent."""
    usage = dict(model.usage)
    prompt, n = min(_PROMPT, model.max_positions // 4), min(_TEXT, model.max_positions // 3)
    trees = []
    for _ in range(2):
        ids = np.arange(texts * n).reshape(texts, n) % model.vocabulary
        tree = PrefilledBatch(model, _prompt(model, prompt), list(ids), [{} for _ in range(texts)])
        tree.positions()
        branches = min(_BRANCHES, n)
        tree.branch(np.repeat(np.arange(texts), branches), np.tile(np.arange(branches), texts))
        trees.append(tree)
    first, second = trees
    first.join(second)
    tokens = first.held
    row, slot = np.repeat(np.arange(2 * texts), _DRAWS), np.tile(np.arange(_DRAWS), 2 * texts)
    parent = slot % min(_BRANCHES, n)
    for _ in range(_STEPS):
        first.extend(row, slot, parent, slot % model.vocabulary)
        parent = slot
        for logits in first.logits(row, slot):
            invert_cdf(logits, torch.zeros(len(logits), 1, dtype=torch.float64, device=model.device))
    sequences = [np.arange(n) % model.vocabulary] * (tokens // n)
    before, model.max_batch_tokens = model.max_batch_tokens, tokens
    token_logprobs(model, sequences, [np.arange(n - 5, n)] * len(sequences), "plus")
    model.max_batch_tokens = before
    model.usage = usage
    return tokens


def _prompt(model: LanguageModel, length: int) -> Prompt:
    cache, depth = KVCache(), torch.arange(length, device=model.device)[None]
    model.forward(depth % model.vocabulary, depth, causal(length, model.device), cache, "prompt", length)
    return Prompt(cache, np.arange(4))


def _restart(device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _free(device: torch.device) -> int:
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]
