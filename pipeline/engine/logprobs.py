"""Log-probabilities of tokens in whole sequences (paper section 2, "Filtering API Calls").

In: sequences of ids, and which of their tokens are wanted. Out: those tokens'
log-probabilities, and what each sequence cost. Nothing is cached or shared between
sequences; they are batched by length, without padding where the model allows that. What
the sequences mean is for the caller.

Shapes: B sequences, Q tokens of the longest, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.base.records import Cost, Phase
from pipeline.engine.model import LanguageModel, pad_rows
from pipeline.engine.unpadding import UnpaddedLayout


def token_logprobs(
    model: LanguageModel,
    sequences: Sequence[np.ndarray],
    wanted: Sequence[np.ndarray],
    phase: Phase,
) -> tuple[list[np.ndarray], list[Cost]]:
    """For each sequence the log-probabilities (nats, float64) of its tokens at the `wanted`
    indices, from 1; and what each sequence cost, its share of the padding included.

    Each sequence is run once and alone: padding stands behind it, where a causal model
    cannot see it. Batches stay under `max_batch_tokens`; the last token of a sequence is
    never fed. Raises ModelError if a single sequence does not fit the memory.
    """
    # Results stay on the device until the end: fetching one waits for all queued work.
    results: list[tuple[list[int], torch.Tensor]] = []
    costs = [Cost()] * len(sequences)
    pending = list(range(len(sequences)))
    while pending:
        fed = [len(sequences[index]) - 1 for index in pending]
        done: set[int] = set()
        failure = None
        for batch in model.batch_by_length(fed):
            indices = [pending[place] for place in batch]
            try:
                logprobs, batch_costs = _score_batch(
                    model,
                    [sequences[index] for index in indices],
                    [wanted[index] for index in indices],
                    phase,
                )
            except torch.OutOfMemoryError as error:
                failure = str(error)
                break
            results.append((indices, logprobs))
            for index, cost in zip(indices, batch_costs, strict=True):
                costs[index] = cost
            done.update(indices)
        pending = [index for index in pending if index not in done]
        # Not in the handler: the exception keeps the tensors of the failed forward alive.
        if failure:
            model.shrink(min(len(sequences[i]) - 1 for i in pending), failure)
    return _by_sequence(results, wanted), costs


def _by_sequence(
    results: Sequence[tuple[list[int], torch.Tensor]], wanted: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The log-probabilities of each sequence, from those of batches."""
    logprobs = [np.zeros(0)] * len(wanted)
    for indices, batch in results:
        ends = np.cumsum([len(wanted[index]) for index in indices])
        parts = np.split(batch.cpu().numpy(), ends[:-1])
        for index, part in zip(indices, parts, strict=True):
            logprobs[index] = part
    return logprobs


def _score_batch(
    model: LanguageModel,
    sequences: Sequence[np.ndarray],
    wanted: Sequence[np.ndarray],
    phase: Phase,
) -> tuple[torch.Tensor, list[Cost]]:
    """token_logprobs of one batch, one sequence after the other in one row."""
    hidden_states, forward_costs = _run_alone(model, [ids[:-1] for ids in sequences])
    sizes = [len(indices) for indices in wanted]
    row = np.repeat(np.arange(len(sizes)), sizes)
    # A token is predicted by the one before it.
    slot = np.concatenate(wanted) - 1
    targets = [ids[indices] for ids, indices in zip(sequences, wanted, strict=True)]
    predicting = hidden_states[model.tensor(row), model.tensor(slot)]
    target_ids = model.tensor(np.concatenate(targets))
    logprobs = model.log_probability(predicting, target_ids, phase).double()
    costs = []
    for cost, size in zip(forward_costs, sizes, strict=True):
        model.usage.record(phase, cost)  # log_probability has counted the logits
        costs.append(cost + Cost(logits=size if model.separate_head else 0))
    return logprobs, costs


@torch.inference_mode()
def _run_alone(
    model: LanguageModel, rows: Sequence[np.ndarray]
) -> tuple[torch.Tensor, list[Cost]]:
    """Hidden states [B, Q, D] of rows that are contexts of their own; each row's cost."""
    sizes = np.array([len(row) for row in rows])
    ids = model.tensor(pad_rows(rows))  # [B, Q]
    longest = ids.shape[1]
    # Given positions and no mask, transformers looks whether positions start anew, which
    # waits for the GPU: there, always unpad, with a mask that is never looked at.
    on_gpu = model.device.type == "cuda"
    unpadded = model.unpads(int(sizes.sum()), ids.numel())
    unpadded = unpadded or (model.can_unpad and on_gpu)
    if unpadded:
        is_token = np.arange(longest) < sizes[:, None]
        layout = UnpaddedLayout.of(is_token, model.device, causal=True)
        # Masks of four dimensions pass through transformers as they are.
        unused_mask = torch.zeros(
            1, 1, 1, 1, dtype=model.model.dtype, device=model.device
        )
        tokens = model.hidden_states(
            layout.unpad(ids),
            layout,
            position_ids=layout.slot[None],
            attention_mask=unused_mask,
            use_cache=False,
        )
        hidden_states = layout.pad(tokens)
    else:
        hidden_states = model.hidden_states(ids, use_cache=False)
    pairs = longest * (longest + 1) // 2
    if model.eager_attention:
        pairs = longest * longest
    costs = [model.row_cost(int(size), longest, pairs, unpadded) for size in sizes]
    return hidden_states, costs
