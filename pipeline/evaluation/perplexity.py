"""Perplexity on held-out texts and on running text, with calls possible or disabled (paper section 4.3).

In: a model and texts. Out: exp of the mean negative log-probability (nats) over all tokens. Each text is one
sequence: BOS if the tokenizer adds one, then the tokens of ``" " + x``. A first token without a predecessor
is not counted. A running text is longer than the context: it is read in windows that overlap, and a window
predicts the tokens that the one before did not. If calls are disabled, <API> has probability 0 and the
others are renormalised, as in decoding. A disabled model cannot write a `` [`` of a text, so these tokens
are left out for every model.

Shapes: B texts, Q tokens fed, M predicted tokens, m of them at a time, V vocabulary, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tqdm import tqdm

from pipeline.benchmarks.wikitext import RunningText
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.model import LanguageModel, causal_mask, pad_rows
from pipeline.evaluation.results import PerplexityResult, RunningTextResult
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
    total, tokens = 0.0, 0
    names = [f"held-out text {text[:60]!r}…" for text, _ in sequences]
    for _, loss, counted in _all_losses(
        model, [sequence for _, sequence in sequences], names, api_mask, disabled
    ):
        total, tokens = total + float(loss[counted].sum()), tokens + int(counted.sum())
    if not tokens:
        raise PerplexityError("no held-out text has a token to predict")
    left_out = sum(len(sequence) - 1 for _, sequence in sequences) - tokens
    return _exp(total / tokens), PerplexityResult(texts=len(texts), tokens=tokens, left_out=left_out)


def running_text_perplexity(
    model: LanguageModel, text: RunningText, window: int, stride: int, *, disabled: bool = True
) -> RunningTextResult:
    """The perplexity of a model on `text`, by word and by token; `disabled` as in `perplexity`.

    A window has `window` tokens, at most the context; the next begins `stride` tokens later and
    predicts the tokens that are new to it. The loss of the whole text in nats is divided by the
    words or by the predicted tokens. Raises PerplexityError.
    """
    window = min(window, model.max_positions)
    stride = min(stride, window - 1)
    ids = np.concatenate([np.array(model.call_tokens.bos, dtype=np.int64), model.encode([text.text])[0].ids])
    if len(ids) < 2:
        raise PerplexityError("the running text has no token to predict")
    starts = [0, *range(stride, max(len(ids) - window + stride, 0), stride)]
    ends = [min(start + window, len(ids)) for start in starts]
    news = [end - before for end, before in zip(ends, [1, *ends], strict=False)]
    sequences = [ids[start:end] for start, end in zip(starts, ends, strict=True)]
    names = [f"running text at token {start}" for start in starts]
    api_mask = ApiTokenMask(model.call_tokens, model.device)
    total, tokens = 0.0, 0
    for index, loss, counted in _all_losses(model, sequences, names, api_mask, disabled):
        new = slice(len(loss) - news[index], None)
        total += float(loss[new][counted[new]].sum())
        tokens += int(counted[new].sum())
    if not tokens:
        raise PerplexityError("the running text has no token to predict")
    return RunningTextResult(
        word_perplexity=_exp(total / text.words),
        token_perplexity=_exp(total / tokens),
        words=text.words,
        lines=text.lines,
        articles=text.articles,
        tokens=tokens,
        left_out=len(ids) - 1 - tokens,
        windows=len(starts),
        window=window,
        stride=stride,
    )


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError as error:
        raise PerplexityError(f"the mean loss of {loss:.0f} nats is no perplexity") from error


def _all_losses(
    model: LanguageModel,
    sequences: Sequence[np.ndarray],
    names: Sequence[str],
    api_mask: ApiTokenMask,
    disabled: bool,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Index, losses and which of them count, of each sequence in the order of the batches.

    Raises PerplexityError with the sequence's name for a loss that counts and is not finite.
    """
    lengths = [len(sequence) - 1 for sequence in sequences]
    with tqdm(total=len(sequences), desc="perplexity", unit="texts", leave=False) as bar:
        for batch in model.batch_by_length(lengths):
            losses = _losses(model, [sequences[index] for index in batch], api_mask, disabled)
            for index, (loss, counted) in zip(batch, losses, strict=True):
                if not np.isfinite(loss[counted]).all():
                    raise PerplexityError(f"a loss is not finite in the {names[index]}")
                yield index, loss, counted
            bar.update(len(batch))


def _losses(
    model: LanguageModel, sequences: Sequence[np.ndarray], api_mask: ApiTokenMask, disabled: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """-ln p, float64, of each sequence's tokens but the first, and which of them count: not those
    that complete <API>."""
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
    return list(parts)
