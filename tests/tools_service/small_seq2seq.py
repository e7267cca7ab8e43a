"""Small encoder-decoders for the tests of QA and MT: taught a few lines by heart, saved as checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    NllbTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

STEPS = 150


def nllb_tokenizer(texts: Sequence[str], languages: Sequence[str]) -> NllbTokenizer:
    """NLLB's kind of tokenizer with a vocabulary made from `texts`."""
    inner = Tokenizer(BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    inner.train_from_iterator(texts, trainer)
    learnt = json.loads(inner.to_str())["model"]
    return NllbTokenizer(
        vocab=learnt["vocab"],
        merges=[tuple(pair) for pair in learnt["merges"]],
        extra_special_tokens=list(languages),
    )


def byte_level_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with an end token behind every text."""
    inner = Tokenizer(BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")


def nllb(vocabulary: int) -> PreTrainedModel:
    """A random model of NLLB's architecture."""
    torch.manual_seed(0)
    config = M2M100Config(vocab_size=vocabulary, max_position_embeddings=96, **_narrow("encoder", "decoder"))
    return M2M100ForConditionalGeneration(config)


def bart(vocabulary: int) -> PreTrainedModel:
    """A random BART with generation settings as a summarizer has them."""
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=vocabulary,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        decoder_start_token_id=1,
        forced_bos_token_id=None,
        forced_eos_token_id=1,
        **_narrow("encoder", "decoder"),
    )
    model = BartForConditionalGeneration(config)
    model.generation_config.update(num_beams=4, min_length=30, no_repeat_ngram_size=2, max_length=60)
    return model


def t5(vocabulary: int, *, tied: bool = True) -> PreTrainedModel:
    """A random T5."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=vocabulary,
        d_model=48,
        d_kv=12,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        tie_word_embeddings=tied,
    )
    return T5ForConditionalGeneration(config)


def _narrow(*sides: str) -> dict[str, float]:
    shape: dict[str, float] = {"d_model": 48, "dropout": 0.0, "attention_dropout": 0.0}
    for side in sides:
        shape |= {f"{side}_layers": 1, f"{side}_attention_heads": 4, f"{side}_ffn_dim": 96}
        shape[f"{side}_layerdrop"] = 0.0
    return shape


def teach(model: PreTrainedModel, sources: Sequence[list[int]], targets: Sequence[list[int]]) -> None:
    """Train until `targets` are known by heart."""
    pad = model.config.pad_token_id
    ids = pad_sequence([torch.tensor(row) for row in sources], batch_first=True, padding_value=pad)
    labels = pad_sequence([torch.tensor(row) for row in targets], batch_first=True, padding_value=-100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(STEPS):
        loss = model(input_ids=ids, attention_mask=(ids != pad).long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.005:
            break


def save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """Write both as a checkpoint; its name for a configuration."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
