"""Log-probabilities of tokens in whole sequences (paper section 2, "Filtering API Calls").

In: sequences of ids, and which of their tokens are wanted. Out: those tokens' log-probabilities,
and what each sequence cost. Nothing is cached or shared between sequences; they are batched by
length, without padding where the model allows that. What the sequences mean is for the caller.

Shapes: B sequences, Q fed tokens of the longest (its length - 1), M fed tokens in all (B * Q
with padding), D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from pipeline.base.records import Cost, Phase
from pipeline.engine.model import LanguageModel, pad_rows, unused_mask
from pipeline.engine.unpadding import UnpaddedLayout


def token_logprobs(
    model: LanguageModel,
    sequences: Sequence[ndarray],
    wanted: Sequence[ndarray],
    phase: Phase,
) -> tuple[list[ndarray], list[Cost]]:
    """For each sequence the log-probabilities (nats) of its tokens at the indices `wanted`,
    and what the sequence cost, its share of the padding included.

    Indices count from 0 and are at least 1: a first token has no prediction. Log-probabilities
    are computed in float32 and returned as float64. Sequences do not see one another: padding
    stands behind them, where a causal model cannot see it. Batches stay under
    `max_batch_tokens` unless a single sequence is longer; the last token of a sequence is
    never fed. Raises ModelError if a single sequence does not fit the memory.
    """
    costs = [Cost()] * len(sequences)

    def run(indices: list[int]) -> Tensor:
        logprobs, batch_costs = _score_batch(
            model,
            [sequences[index] for index in indices],
            [wanted[index] for index in indices],
            phase,
        )
        for index, cost in zip(indices, batch_costs, strict=True):
            costs[index] = cost
        return logprobs

    fed = [len(sequence) - 1 for sequence in sequences]
    return _by_sequence(run_batches(model, fed, run), wanted), costs


def run_batches(
    model: LanguageModel,
    lengths: Sequence[int],
    run: Callable[[list[int]], Tensor],
) -> list[tuple[list[int], Tensor]]:
    """Run rows of these lengths in batches; the result of each batch, and its rows' indices.

    After a forward that ran out of memory, what is left is batched anew, smaller. Raises
    ModelError if a single row does not fit the memory.
    """
    # Results stay on the device until the end: fetching one waits for all queued work.
    results: list[tuple[list[int], Tensor]] = []
    pending = list(range(len(lengths)))
    while pending:
        done: set[int] = set()
        failure = None
        for batch in model.batch_by_length(
            [lengths[index] for index in pending]
        ):
            indices = [pending[place] for place in batch]
            try:
                results.append((indices, run(indices)))
            except torch.OutOfMemoryError as error:
                failure = str(error)
                break
            done.update(indices)
        pending = [index for index in pending if index not in done]
        # Not in the handler: the exception keeps the tensors of the failed forward alive.
        if failure is not None:
            smallest = min(lengths[index] for index in pending)
            model.shrink(smallest, failure)
    return results


def _by_sequence(
    results: Sequence[tuple[list[int], Tensor]],
    wanted: Sequence[ndarray],
) -> list[ndarray]:
    """The log-probabilities of each sequence, from those of batches."""
    logprobs = [np.zeros(0)] * len(wanted)
    for indices, batch in results:
        sizes = [len(wanted[index]) for index in indices]
        ends = np.cumsum(sizes)
        values = batch.cpu().numpy()
        parts = np.split(values, ends[:-1])
        for index, part in zip(indices, parts, strict=True):
            logprobs[index] = part
    return logprobs


def _score_batch(
    model: LanguageModel,
    sequences: Sequence[ndarray],
    wanted: Sequence[ndarray],
    phase: Phase,
) -> tuple[Tensor, list[Cost]]:
    """Log-probabilities of one batch, those of one sequence after another; costs."""
    # The last token is only predicted, never fed.
    fed = [ids[:-1] for ids in sequences]
    # A token is predicted by the one before it.
    slots = [indices - 1 for indices in wanted]
    predicting, forward_costs = _forward_batch(model, fed, slots)
    sizes = [len(indices) for indices in wanted]
    targets = [
        ids[indices] for ids, indices in zip(sequences, wanted, strict=True)
    ]
    target_ids = model.tensor(np.concatenate(targets))
    logprobs = model.log_probability(predicting, target_ids, phase)
    costs = []
    for cost, size in zip(forward_costs, sizes, strict=True):
        # `log_probability` has counted the logits in `model.usage`, not for the sequence.
        model.usage.record(phase, cost)
        logits = size if model.separate_head else 0
        costs.append(cost + Cost(logits=logits))
    return logprobs.double(), costs


@torch.inference_mode()
def _forward_batch(
    model: LanguageModel, rows: Sequence[ndarray], slots: Sequence[ndarray]
) -> tuple[Tensor, list[Cost]]:
    """Hidden states of the tokens in these slots of independent sequences, those of one
    sequence after another, and the cost of each."""
    sizes = np.array([len(row) for row in rows])
    longest = int(sizes.max())
    unpadded = model.unpads(int(sizes.sum()), sizes.size * longest)
    # Without a mask, transformers checks for packed sequences, which waits for the GPU. The
    # unpadded path has a mask, so on CUDA it is always taken.
    if model.can_unpad and model.device.type == "cuda":
        unpadded = True
    # The index of each sequence's first token among all that are fed.
    first = np.arange(sizes.size) * longest
    fed = sizes.size * longest
    if unpadded:
        first, fed = sizes.cumsum() - sizes, int(sizes.sum())
    index = np.repeat(first, list(map(len, slots))) + np.concatenate(slots)
    wanted = np.zeros(fed, dtype=bool)
    wanted[index] = True
    if unpadded:
        ids = np.concatenate(rows)
        hidden_states = _run_unpadded(model, ids, sizes, wanted)
    else:
        # Padding stands behind the tokens: a causal model needs no mask for it.
        hidden_states = model.hidden_states(
            model.tensor(pad_rows(rows)), wanted=wanted, use_cache=False
        )
    wanted_states = hidden_states.flatten(0, 1)[model.tensor(index)]
    # Attention pads a row, and is causal; ragged attention does not pad, eager is not causal.
    attended = sizes if unpadded and model.ragged_attention else longest
    pairs = np.broadcast_to(attended * (attended + 1) // 2, sizes.shape)
    if model.eager_attention:
        pairs = np.full(sizes.shape, longest * longest)
    costs = [
        model.row_cost(size, longest, pairs_of_row, unpadded)
        for size, pairs_of_row in zip(
            sizes.tolist(), pairs.tolist(), strict=True
        )
    ]
    return wanted_states, costs


def _run_unpadded(
    model: LanguageModel, ids: ndarray, sizes: ndarray, wanted: ndarray
) -> Tensor:
    """Hidden states [1, M, D] of the ids [M] of sequences of these sizes, without padding."""
    is_token = np.arange(sizes.max()) < sizes[:, None]
    layout = UnpaddedLayout.of(
        is_token, model.device, causal=True, ragged=model.ragged_attention
    )
    return model.hidden_states(
        model.tensor(ids)[None],
        layout,
        wanted,
        position_ids=layout.slot[None],
        attention_mask=unused_mask(model.model.dtype, model.device),
        use_cache=False,
    )
