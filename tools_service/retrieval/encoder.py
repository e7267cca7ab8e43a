"""Texts to vectors for dense retrieval, with any encoder of transformers.

In: queries or passages. Out: one float32 vector each. Token vectors are pooled (their mean, or the
first one) and, if the configuration says so, scaled to length 1. Prefixes are the encoder's own
(`query: ` and `passage: ` for e5, none for Contriever). Texts are cut at `max_tokens`.

Shapes: B rows, T tokens, D hidden size.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel

from tools_service.base.batching import batch_by_length
from tools_service.base.checkpoints import load_model, load_tokenizer, resolve_device
from tools_service.base.errors import ConfigurationError
from tools_service.config import EncoderConfig
from tools_service.retrieval.passages import Passage

Vectors = npt.NDArray[np.float32]  # [texts, D]

# Token vectors are pooled here: a pooling layer of the checkpoint, or its absence, does not matter.
_UNUSED_WEIGHTS = ("pooler.",)


class EncoderError(ConfigurationError):
    """An encoder cannot be loaded, or not be used as the configuration says."""


class Encoder:
    """An encoder with its tokenizer. Threads may share it."""

    def __init__(self, config: EncoderConfig) -> None:
        """Load the checkpoint; EncoderError if that fails or it cannot read `max_tokens`."""
        self._config = config
        device = resolve_device(config.device, "tools.wikisearch.encoder.device", EncoderError)
        self._tokenizer, model = _load(config)
        self._model: Any = model.to(device).train(False)
        self._tokenizer_lock = threading.Lock()  # truncation changes the tokenizer's state

    @property
    def dimension(self) -> int:
        """D, the length of the vectors."""
        return int(self._model.config.hidden_size)

    def encode_queries(self, queries: Sequence[str]) -> Vectors:
        """Return a vector for each query, [queries, D]."""
        return self._encode([self._config.query_prefix + query for query in queries])

    def encode_passages(self, passages: Sequence[Passage]) -> Vectors:
        """Return a vector for each passage with its title in front, [passages, D]."""
        prefix = self._config.passage_prefix
        return self._encode([f"{prefix}{passage.title} {passage.text}" for passage in passages])

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str]) -> Vectors:
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        if not texts:
            return vectors
        valid = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]  # no lone surrogates
        with self._tokenizer_lock:
            # Special tokens that are written out in a text are text.
            options = {"max_length": self._config.max_tokens, "split_special_tokens": True}
            ids = self._tokenizer(valid, truncation=True, **options)["input_ids"]
        for batch in batch_by_length([len(row) for row in ids], max_rows=self._config.batch_size):
            vectors[batch] = self._forward([ids[n] for n in batch]).float().cpu().numpy()
        return vectors

    def _forward(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:  # [B, D]
        rows = [torch.tensor(row) for row in ids]
        padded = pad_sequence(rows, batch_first=True, padding_value=self._tokenizer.pad_token_id)  # [B, T]
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        # Each copy to a GPU waits for it: one for the batch, not one for each row.
        padded, mask = padded.to(self._model.device), mask.to(self._model.device)
        hidden = self._model(input_ids=padded, attention_mask=mask).last_hidden_state  # [B, T, D]
        if self._config.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            weights = mask[:, :, None].to(torch.float32)
            pooled = (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1)
        return torch.nn.functional.normalize(pooled.float(), dim=-1) if self._config.normalize else pooled


def _load(config: EncoderConfig) -> tuple[Any, Any]:
    """Return tokenizer and model; EncoderError names the field that is wrong."""
    field = "tools.wikisearch.encoder.model"
    tokenizer = load_tokenizer(config.model, field, EncoderError)
    options: dict[str, Any] = {"dtype": config.dtype, "unused_weights": _UNUSED_WEIGHTS}
    model = load_model(AutoModel, config.model, field, error=EncoderError, **options)
    if model.config.is_encoder_decoder:
        raise EncoderError(f"{field} {config.model!r}: is an encoder-decoder; name an encoder")
    if tokenizer.pad_token_id is None:
        raise EncoderError(f"{field} {config.model!r}: its tokenizer has no token for padding")
    positions = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 2**62))
    if config.max_tokens > positions:
        raise EncoderError(
            f"tools.wikisearch.encoder.max_tokens = {config.max_tokens}: {config.model!r} reads {positions} "
            "at most; lower it"
        )
    return tokenizer, model
