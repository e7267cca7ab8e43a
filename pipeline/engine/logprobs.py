"""Sequences run whole: log-probabilities of some of their tokens (paper section 2, "Filtering API Calls").

In: sequences of ids, and which of their tokens are wanted. Out: those tokens' log-probabilities, and what
each sequence cost. Nothing is cached and nothing shared between sequences; they are batched by length, and
padding is left out where the model allows. What the sequences are made of is filtering.py's.

Shapes: B sequences, Q tokens of the longest, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.base.records import Cost, Phase
from pipeline.engine.model import LanguageModel, pad
from pipeline.engine.unpadding import UnpaddedLayout


def token_logprobs(
    model: LanguageModel, sequences: Sequence[np.ndarray], wanted: Sequence[np.ndarray], phase: Phase
) -> tuple[list[np.ndarray], list[Cost]]:
    """For each sequence the log-probabilities (nats, float64) of its tokens at the `wanted` indices,
    from 1; and what each cost, its share of the padding included.

    Each sequence is run once and alone: padding stands behind it, where a causal model cannot see it.
    Sequences are batched by length under `max_batch_tokens`; the last token of a sequence is never fed.
    """
    parts: list[tuple[list[int], torch.Tensor]] = []  # stay on the device: to fetch them is to wait for it
    costs, left = [Cost()] * len(sequences), list(range(len(sequences)))
    while left:
        lengths, done, failed = [len(sequences[index]) - 1 for index in left], set(), None
        for batch in model.batch_by_length(lengths):
            mine = [left[place] for place in batch]
            try:
                found, usage = _scored(model, [sequences[i] for i in mine], [wanted[i] for i in mine], phase)
            except torch.OutOfMemoryError as error:
                failed = str(error)
                break
            parts.append((mine, found))
            for index, cost in zip(mine, usage, strict=True):
                costs[index] = cost
            done.update(mine)
        left = [index for index in left if index not in done]
        if failed:  # out of the handler, which holds on to the tensors of the forward that failed
            model.shrink(min(len(sequences[index]) - 1 for index in left), failed)
    out = [np.zeros(0)] * len(sequences)
    for mine, found in parts:
        ends = np.cumsum([len(wanted[index]) for index in mine])
        for index, logprobs in zip(mine, np.split(found.cpu().numpy(), ends[:-1]), strict=True):
            out[index] = logprobs
    return out, costs


def _scored(
    model: LanguageModel, sequences: Sequence[np.ndarray], wanted: Sequence[np.ndarray], phase: Phase
) -> tuple[torch.Tensor, list[Cost]]:
    """token_logprobs of one batch, in one row."""
    features, usage = _alone(model, [sequence[:-1] for sequence in sequences])
    sizes = [len(indices) for indices in wanted]
    costs = [
        cost + Cost(logits=size if model.separate_head else 0)
        for cost, size in zip(usage, sizes, strict=True)
    ]
    row, column = np.repeat(np.arange(len(sizes)), sizes), np.concatenate(wanted)
    targets = np.concatenate([ids[at] for ids, at in zip(sequences, wanted, strict=True)])
    chosen = features[model.tensor(row), model.tensor(column - 1)]
    found = model.log_probability(chosen, model.tensor(targets), phase).double()
    for cost in usage:  # log_probability has counted the logits
        model.spend(phase, cost)
    return found, costs


@torch.inference_mode()
def _alone(model: LanguageModel, rows: Sequence[np.ndarray]) -> tuple[torch.Tensor, list[Cost]]:
    """Features [B, Q, D] of rows that are contexts of their own, and what each row cost."""
    sizes, ids = np.array([len(row) for row in rows]), model.tensor(pad(rows))
    longest = ids.shape[1]
    # A model without a mask looks whether positions begin anew, for which a GPU would be waited for.
    packed = model.leaves_padding_out(int(sizes.sum()), ids.numel()) or (
        model.packs and model.device.type == "cuda"
    )
    if packed:
        places = UnpaddedLayout.of(np.arange(longest) < sizes[:, None], model.device, causal=True)
        # A mask of four dimensions is passed on as it is: the model must not make one from the positions.
        mask = torch.zeros(1, 1, 1, 1, dtype=model.model.dtype, device=model.device)
        inputs = {"position_ids": places.column[None], "attention_mask": mask, "places": places}
        features = places.spread(model.features(places.pack(ids), use_cache=False, **inputs))
    else:
        features = model.features(ids, use_cache=False)
    pairs = longest * longest if model.eager else longest * (longest + 1) // 2
    return features, [model.cost(int(size), longest, pairs, packed) for size in sizes]
