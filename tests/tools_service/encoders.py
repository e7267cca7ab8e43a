"""A small random encoder of BERT's architecture, saved as a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

DIMENSION = 32


def bert(folder: Path, words: Sequence[str], seed: int = 0, **changes: object) -> str:
    """The folder of an encoder that knows `words`; another seed gives other weights."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: n for n, word in enumerate([*special, *dict.fromkeys(words)])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", model_max_length=64)
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": DIMENSION, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=len(vocabulary), intermediate_size=32, max_position_embeddings=64, **shape, **changes
    )
    torch.manual_seed(seed)
    model = BertModel(config)
    with torch.no_grad():  # words must weigh more than positions for closeness to mean anything
        model.embeddings.word_embeddings.weight.mul_(40)
    model.save_pretrained(folder)
    return str(folder)
