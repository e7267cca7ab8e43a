"""A language model that follows scripts, and tokenizers that differ in how they write calls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from pipeline.base.records import Phase
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.model import LanguageModel
from pipeline.syntax.tokenizer import CallTokens, decode_continuations, tokenize_continuations

_PAGES = [
    " The answer to 27 + 4 is [Calculator(27 + 4) -> 31] 31.",
    " Today [Calendar() -> Today is Monday, January 30, 2023.] is Monday.",
    " The river [WikiSearch(the river Anna) -> Anna > The Anna is a river.] is long [QA(Why?) -> It is.].",
    " He said [MT(hola) -> hello] hello, and so on, and so on.",
]
_API = pre_tokenizers.Split(" [", "isolated")


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """`bytes` merges nothing, `words` inside words, `merging` across anything; `metaspace` marks spaces.

    None merges `` [`` with the characters around it; CallTokens refuses such tokenizers.
    """
    if kind == "metaspace":
        return PreTrainedTokenizerFast(tokenizer_object=_metaspace(), eos_token="</s>")
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [_API, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "words")]
    )
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        _PAGES * 4,
        trainers.BpeTrainer(
            vocab_size=257 if kind == "bytes" else 400,
            special_tokens=["</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


@cache
def call_tokens(kind: str) -> CallTokens:
    return CallTokens.of(tokenizer(kind))


def _metaspace() -> Tokenizer:
    """As SentencePiece does it: a mark for each space, one more in front, bytes for unknown characters."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence([_API, pre_tokenizers.Metaspace(prepend_scheme="first")])
    trained.train_from_iterator(_PAGES * 4, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    inner = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=[tuple(merge) for merge in model["merges"]],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    inner.pre_tokenizer = trained.pre_tokenizer
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return inner


class ScriptedModel(LanguageModel):
    """Continues along `paths`, whole texts with prompt and calls, and prefers the first path that fits.

    The next tokens of all paths that begin with the text so far rank in the paths' order, then EOS. No token
    crosses a ``|`` in a path. The cache and the mask are real: the model sees the tokens of a row that a
    transformer would attend to. `seen` keeps every text that the model saw.
    """

    def __init__(self, kind: str, paths: Sequence[str], max_positions: int = 2**31) -> None:
        self.tokenizer = tokenizer(kind)
        self.call_tokens = call_tokens(kind)
        self.paths = [" " + path for path in paths]
        self.device = torch.device("cpu")
        self.max_batch_tokens = 16_384
        self.max_positions = max_positions
        self.eos = self.tokenizer.eos_token_id
        self.model = torch.nn.Module()  # type: ignore[assignment]
        self.model.generation_config = GenerationConfig()
        self.seen: list[str] = []

    @torch.inference_mode()
    def forward(
        self,
        ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        cache: KVCache,
        phase: Phase,
        tokens_by_row: Sequence[int],
        is_token: np.ndarray | None = None,
        wanted: np.ndarray | None = None,
    ) -> torch.Tensor:
        """Logits [B, Q, V] after each row's last token; keeps the ids in the cache as if they were keys."""
        kept = ids[:, None, :, None].float()
        slots, _ = cache.update(kept, kept, 0)
        cache.length += ids.shape[1]
        rows = []
        for row, queries in enumerate(attention_mask.expand(ids.shape[0], -1, -1)):
            last = tokens_by_row[row] - 1
            visible = slots[row, 0, : queries.shape[1], 0][queries[last]].long().tolist()
            assert int(position_ids[row, last]) == len(visible) - 1, "a position is not that of its token"
            rows.append(self._prefer(visible))
        return torch.stack(rows)[:, None].expand(-1, ids.shape[1], -1)

    def logits(self, hidden_states: torch.Tensor) -> Iterator[torch.Tensor]:
        yield hidden_states

    def _prefer(self, visible: list[int]) -> torch.Tensor:
        [text] = decode_continuations(self.tokenizer, [visible])
        self.seen.append(text)
        candidates = [self._next(path.split("|"), text) for path in self.paths]
        logits = torch.zeros(len(self.call_tokens.token_strings))
        ranked = dict.fromkeys([token for token in candidates if token is not None] + [self.eos])
        for rank, token in enumerate(ranked):
            logits[token] = 100.0 - rank
        return logits

    def _next(self, segments: list[str], text: str) -> int | None:
        """The first token of what `segments` have behind `text`; None where they do not begin with it."""
        if not "".join(segments).startswith(text):
            return None
        for segment in segments:
            if len(text) < len(segment):
                return int(tokenize_continuations(self.tokenizer, [segment[len(text) :]])[0].ids[0])
            text = text[len(segment) :]
        return int(self.eos)
