"""Texts to vectors, for dense retrieval: any encoder of transformers. (The paper searches with BM25.)

In: queries or passages. Out: one float32 vector each: token vectors pooled (their mean, or the first),
scaled to length 1 where the configuration says so. Prefixes are the encoder's own (`query: ` and `passage: `
for e5, none for Contriever). Texts are cut at `max_tokens` and encoded in batches of like length. Weights
come as safetensors, and no code is taken from the checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer

from tools_service.base.errors import ConfigurationError
from tools_service.config import EncoderConfig
from tools_service.retrieval.passages import Passage

Vectors = npt.NDArray[np.float32]  # [texts, D]


class EncoderError(ConfigurationError):
    """An encoder that cannot be loaded, or not be used as the configuration says."""


class Encoder:
    """One encoder with its tokenizer. Any number of threads may use one."""

    def __init__(self, config: EncoderConfig) -> None:
        """EncoderError if the checkpoint cannot be loaded, or its inputs are shorter than `max_tokens`."""
        self._config = config
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer, model = _load(config)
        self._model: Any = model.to(device).train(False)
        self._lock = threading.Lock()  # a tokenizer that cuts is changed by being used

    @property
    def dimension(self) -> int:
        """D, the length of the vectors."""
        return int(self._model.config.hidden_size)

    def queries(self, queries: Sequence[str]) -> Vectors:
        """A vector for each query."""
        return self._encode([self._config.query_prefix + query for query in queries])

    def passages(self, passages: Sequence[Passage]) -> Vectors:
        """A vector for each passage, its title in front."""
        return self._encode([f"{self._config.passage_prefix}{one.title} {one.text}" for one in passages])

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str]) -> Vectors:
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        if not texts:
            return vectors
        whole = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]  # no lone surrogates
        with self._lock:
            ids = self._tokenizer(whole, truncation=True, max_length=self._config.max_tokens)["input_ids"]
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        for start in range(0, len(order), self._config.batch_size):
            batch = order[start : start + self._config.batch_size]
            vectors[batch] = self._forward([ids[n] for n in batch]).float().cpu().numpy()
        return vectors

    def _forward(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:  # [B, D]
        longest = max(map(len, ids))
        pad = self._tokenizer.pad_token_id
        padded = torch.tensor([[*one, *[pad] * (longest - len(one))] for one in ids])
        mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in ids])
        padded, mask = padded.to(self._model.device), mask.to(self._model.device)
        hidden = self._model(input_ids=padded, attention_mask=mask).last_hidden_state  # [B, T, D]
        if self._config.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            weights = mask[:, :, None].to(torch.float32)
            pooled = (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1)
        return torch.nn.functional.normalize(pooled.float(), dim=-1) if self._config.normalize else pooled


def _load(config: EncoderConfig) -> tuple[Any, Any]:
    where = f"tools.wikisearch.encoder.model {config.model!r}"
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model, trust_remote_code=False)
        model: Any = AutoModel.from_pretrained(
            config.model,
            dtype=getattr(torch, config.dtype),
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise EncoderError(f"{where}: cannot load it: {error}") from error
    if model.config.is_encoder_decoder:
        raise EncoderError(f"{where}: is an encoder-decoder; name an encoder")
    if tokenizer.pad_token_id is None:
        raise EncoderError(f"{where}: its tokenizer has no token for padding")
    positions = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 2**62))
    if config.max_tokens > positions:
        raise EncoderError(
            f"tools.wikisearch.encoder.max_tokens = {config.max_tokens}: {config.model!r} reads {positions} "
            "at most; lower it"
        )
    return tokenizer, model
