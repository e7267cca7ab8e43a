"""Perplexity on held-out texts, with calls possible or disabled (paper section 4.3).

In: a model and texts. Out: exp of the mean negative log-probability (nats) over all tokens. Each text is one
sequence: BOS if the tokenizer adds one, then the tokens of ``" " + x``. A first token without a predecessor
is not counted. If calls are disabled, <API> has probability 0 and the others are renormalised, as in
decoding. A disabled model cannot write a `` [`` of a text, so these tokens are left out for every model.

Shapes: B texts, Q tokens fed, M predicted tokens, m of them at a time, V vocabulary, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from pipeline.engine.kv_cache import KVCache
from pipeline.engine.model import LanguageModel, causal_mask, pad_rows
from pipeline.evaluation.results import PerplexityResult
from pipeline.inference.call_parser import ApiTokenMask
from tools_service.base.errors import ToolformerError


class PerplexityError(ToolformerError):
    """A held-out text that cannot be scored, or no text at all."""


def perplexity(
    model: LanguageModel, texts: Sequence[str], *, disabled: bool
) -> tuple[float, PerplexityResult]:
    """The perplexity of `model` on `texts`, and what was counted.

    `disabled` sets the probability of <API> to 0. Raises PerplexityError for a text longer than the
    context, a loss that is not finite, or no token to predict.
    """
    bos = np.array(model.call_tokens.bos, dtype=np.int64)
    sequences: list[tuple[str, np.ndarray]] = []  # of the texts with a token to predict
    for text, tokenized in zip(texts, model.encode(texts) if texts else [], strict=True):
        sequence = np.concatenate([bos, tokenized.ids])
        if len(sequence) > model.max_positions:
            problem = f"has {len(sequence)} tokens, the context {model.max_positions}"
            raise PerplexityError(f"the held-out text {text[:60]!r}… {problem}")
        if len(sequence) > 1:
            sequences.append((text, sequence))
    api_mask = ApiTokenMask(model.call_tokens, model.device)
    lengths = [len(sequence) - 1 for _, sequence in sequences]
    total, tokens = 0.0, 0
    with tqdm(total=len(sequences), desc="perplexity", unit="texts", leave=False) as bar:
        for batch in model.batch_by_length(lengths):
            losses = _losses(model, [sequences[index][1] for index in batch], api_mask, disabled)
            for index, loss in zip(batch, losses, strict=True):
                if not np.isfinite(loss).all():
                    text = sequences[index][0][:60]
                    raise PerplexityError(f"a loss is not finite in the held-out text {text!r}…")
                total, tokens = total + float(loss.sum()), tokens + len(loss)
            bar.update(len(batch))
    if not tokens:
        raise PerplexityError("no held-out text has a token to predict")
    counts = PerplexityResult(texts=len(texts), tokens=tokens, left_out=sum(lengths) - tokens)
    try:
        return math.exp(total / tokens), counts
    except OverflowError as error:
        raise PerplexityError(f"the mean loss of {total / tokens:.0f} nats is no perplexity") from error


def _losses(
    model: LanguageModel, sequences: Sequence[np.ndarray], api_mask: ApiTokenMask, disabled: bool
) -> list[np.ndarray]:
    """-ln p, float64, of each sequence's tokens but the first and those that complete <API>."""
    lengths = [len(sequence) - 1 for sequence in sequences]
    input_ids = model.tensor(pad_rows([sequence[:-1] for sequence in sequences]))  # [B, Q]
    position_ids = torch.arange(input_ids.shape[1], device=model.device).expand(input_ids.shape)
    attention_mask = causal_mask(input_ids.shape[1], model.device).expand(len(input_ids), -1, -1)  # [B, Q, Q]
    inputs = (input_ids, position_ids, attention_mask)
    hidden_states = model.forward(*inputs, KVCache(), "empty", lengths)  # [B, Q, D]
    is_token = position_ids < torch.tensor(lengths, device=model.device)[:, None]  # [B, Q]
    previous = input_ids[is_token]  # [M]
    targets = model.tensor(np.concatenate([sequence[1:] for sequence in sequences]))  # [M]
    losses, completes_api, done = [], [], 0
    for logits in model.logits(hidden_states[is_token]):  # [m, V]
        chunk = slice(done, done + len(logits))
        done += len(logits)
        chunk_targets = targets[chunk, None]  # [m, 1]
        api_ids = api_mask.after(previous[chunk])  # [m, V], without ids that the tokenizer does not use
        completes_api.append(api_ids.gather(1, chunk_targets)[:, 0])
        if disabled:
            logits = logits.clone()  # noqa: PLW2901
            logits[:, : api_ids.shape[1]].masked_fill_(api_ids, -torch.inf)
        losses.append(logits.logsumexp(1) - logits.gather(1, chunk_targets)[:, 0])
    counted = ~torch.cat(completes_api).cpu().numpy()
    all_losses = torch.cat(losses).double().cpu().numpy()
    cuts = np.cumsum(lengths)[:-1]
    parts = zip(np.split(all_losses, cuts), np.split(counted, cuts), strict=True)
    return [loss[keep] for loss, keep in parts]
