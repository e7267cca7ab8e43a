"""Log-likelihoods of continuations by the plain language model: no call, no token left out.

In: pairs of context and continuation in tokens. Out: for each the log-probability of the continuation
(nats), and whether greedy decoding would give it. Rows of similar length run together, padded at the end.

Shapes: B rows, Q fed tokens of the longest, D hidden, M predicted tokens, m of them at a time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.engine.logprobs import run_batches
from pipeline.engine.model import LanguageModel, pad_rows


def continuation_logprobs(
    model: LanguageModel, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[tuple[float, bool]]:
    """The log-probability (nats) of each continuation, and whether each of its tokens is the likeliest.

    Log-probabilities of tokens are computed in float32 and added in float64. A context has at least one
    token, and context and continuation at most one more than the model's context: the last token is not
    fed. Raises ModelError if a single row does not fit the memory.
    """
    sequences = [np.array([*context, *continuation], dtype=np.int64) for context, continuation in pairs]
    sizes = np.array([len(continuation) for _, continuation in pairs], dtype=np.int64)

    def run(indices: list[int]) -> Tensor:
        return _score(model, [sequences[index] for index in indices], sizes[indices])

    results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    lengths = [len(sequence) - 1 for sequence in sequences]
    for indices, scores in run_batches(model, lengths, run):
        ends = np.cumsum(sizes[indices])
        logprobs, likeliest = (np.split(row, ends[:-1]) for row in scores.cpu().numpy())
        for index, values, is_likeliest in zip(indices, logprobs, likeliest, strict=True):
            results[index] = float(values.sum()), bool(is_likeliest.all())
    return results


@torch.inference_mode()
def _score(model: LanguageModel, sequences: Sequence[np.ndarray], sizes: np.ndarray) -> Tensor:
    """[2, M] float64 of the last `sizes` [B] tokens of each sequence: log-probability, 1 if likeliest."""
    fed = [sequence[:-1] for sequence in sequences]
    input_ids = pad_rows(fed)  # [B, Q]
    # A token is predicted by the one before it.
    ends = np.array([len(row) for row in fed])[:, None]
    slots = np.arange(input_ids.shape[1])
    is_predicting = (slots >= ends - sizes[:, None]) & (slots < ends)
    # Padding stands behind the tokens, where a causal model does not see it.
    hidden_states = model.hidden_states(  # [B, Q, D]
        model.tensor(input_ids), wanted=is_predicting, use_cache=False
    )
    row, slot = (model.tensor(index) for index in is_predicting.nonzero())
    predicting = hidden_states[row, slot]  # [M, D]
    targets = [ids[len(ids) - size :] for ids, size in zip(sequences, sizes, strict=True)]
    target_ids = model.tensor(np.concatenate(targets))  # [M]
    scores: list[Tensor] = []
    start = 0
    for logits in model.logits(predicting, "empty"):  # [m, V]
        chunk = target_ids[start : start + len(logits)]
        start += len(logits)
        logprobs = logits.log_softmax(1).gather(1, chunk[:, None])[:, 0]
        scores.append(torch.stack([logprobs.double(), (logits.argmax(1) == chunk).double()]))
    return torch.cat(scores, dim=1)
