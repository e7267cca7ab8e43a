"""Step 8: how well a model predicts plain text, with calls possible or disabled (paper section 4.3).

Perplexity is exp of the mean negative log-probability (nats) of a token, over all tokens of held-out texts.
Each text is a sequence of its own, composed as in every step: BOS where the tokenizer puts one, then the
tokens of `` `` + x. A first token that nothing precedes is not predicted and not counted. Disabled, the
probability of <API> is 0 at every position and the others' are renormalised: the model is the one that
decodes. Texts may hold `` [`` themselves, which a disabled model cannot write: those tokens are left out for
every model, and counted, so that all are measured on the same tokens.

Shapes: B texts, Q tokens fed, M predicted tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from pipeline.engine.kv_cache import KVCache
from pipeline.engine.model import LanguageModel, causal_mask, pad_rows
from pipeline.inference.call_parser import ApiTokenMask
from tools_service.base.errors import ToolformerError


class PerplexityError(ToolformerError):
    """A held-out text that cannot be scored, or none at all."""


@dataclass(frozen=True, slots=True)
class Perplexity:
    """`value` over `tokens` tokens of `texts` texts; `left_out` more spell <API> and do not count."""

    value: float
    tokens: int
    texts: int
    left_out: int


def perplexity(model: LanguageModel, texts: Sequence[str], *, disabled: bool) -> Perplexity:
    """Of `model` on `texts`, each of which must fit the context; `disabled` takes <API> away.

    Raises PerplexityError for a text that is too long, a loss that is not finite, or nothing to predict.
    """
    bos = np.array(model.call_tokens.bos, dtype=np.int64)
    sequences = [np.concatenate([bos, pieces.ids]) for pieces in model.encode(texts)] if texts else []
    for text, sequence in zip(texts, sequences, strict=True):
        if len(sequence) > model.max_positions:
            problem = f"has {len(sequence)} tokens, the context {model.max_positions}"
            raise PerplexityError(f"the held-out text {text[:60]!r}… {problem}")
    beginnings = ApiTokenMask(model.call_tokens, model.device)
    predicted = [index for index, sequence in enumerate(sequences) if len(sequence) > 1]
    total, tokens = 0.0, 0
    with tqdm(total=len(predicted), desc="perplexity", unit="texts", leave=False) as bar:
        for batch in model.batch_by_length([len(sequences[index]) - 1 for index in predicted]):
            chosen = [predicted[number] for number in batch]
            losses = _losses(model, [sequences[index] for index in chosen], beginnings, disabled)
            for index, loss in zip(chosen, losses, strict=True):
                if not np.isfinite(loss).all():
                    raise PerplexityError(f"a loss is not finite in the held-out text {texts[index][:60]!r}…")
                total, tokens = total + float(loss.sum()), tokens + len(loss)
            bar.update(len(batch))
    if not tokens:
        raise PerplexityError("no held-out text has a token to predict")
    fed = sum(len(sequences[index]) - 1 for index in predicted)
    return Perplexity(math.exp(total / tokens), tokens, len(texts), fed - tokens)


def _losses(
    model: LanguageModel, sequences: Sequence[np.ndarray], beginnings: ApiTokenMask, disabled: bool
) -> list[np.ndarray]:
    """For each sequence -ln p, float64, of its tokens but the first and those that spell <API>."""
    sizes = [len(sequence) - 1 for sequence in sequences]
    ids = torch.from_numpy(pad_rows([sequence[:-1] for sequence in sequences])).to(model.device)  # [B, Q]
    depth = torch.arange(ids.shape[1], device=model.device).expand(ids.shape)
    allowed = causal_mask(ids.shape[1], model.device).expand(len(ids), -1, -1)
    features = model.forward(ids, depth, allowed, KVCache(), "empty", sizes)
    real = depth < torch.tensor(sizes, device=model.device)[:, None]
    before = ids[real]  # [M]
    targets = torch.from_numpy(np.concatenate([sequence[1:] for sequence in sequences])).to(model.device)
    losses, spelling, done = [], [], 0
    for logits in model.logits(features[real]):
        chunk = slice(done, done + len(logits))
        calls_disabled = beginnings.after(before[chunk])  # [m, V]
        spelling.append(calls_disabled.gather(1, targets[chunk, None])[:, 0])
        if disabled:
            logits = logits.clone()  # noqa: PLW2901
            logits[:, : calls_disabled.shape[1]].masked_fill_(calls_disabled, -torch.inf)
        losses.append(logits.logsumexp(1) - logits.gather(1, targets[chunk, None])[:, 0])
        done += len(logits)
    counted = ~torch.cat(spelling).cpu().numpy()
    every = torch.cat(losses).double().cpu().numpy()
    cuts = np.cumsum(sizes)[:-1]
    return [loss[keep] for loss, keep in zip(np.split(every, cuts), np.split(counted, cuts), strict=True)]
