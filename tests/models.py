"""Small real models and tokenizers for the tests: nothing is downloaded, nothing is mocked."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from pipeline.model import LanguageModel

TEXT = (
    "The bakery sold 48 rolls on Monday and 67 on Tuesday, 115 in both days. [Calculator(48 + 67) -> 115] "
    "Input: The bridge was opened in 1998. Output: The bridge was opened in [Calendar()] 1998. "
    "[QA(Where was Ada born?) -> Oslo] [WikiSearch(Forth Bridge)] [MT(pollo con arroz)] café, naïve “x”. "
)
ARCHITECTURES = ("llama", "gpt_neox", "gpt2", "gptj")
TOKENIZERS = ("bytes", "split_marker", "pieces", "words")


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """One of four kinds.

    bytes: as GPT-2's, `` [`` and ``)]`` are one token each, no BOS. split_marker: the same without merges
    of the bracket, so that ``<API>`` is two tokens. pieces: as Llama's, BPE over ``▁`` with a dummy prefix,
    byte fallback and a BOS. words: a Unigram with Metaspace and a BOS.
    """
    if kind in ("bytes", "split_marker"):
        return _byte_level([] if kind == "split_marker" else [" [", ")]", " ->", "(", "]."])
    return _llama_like() if kind == "pieces" else _unigram()


def _byte_level(merged: list[str]) -> PreTrainedTokenizerFast:
    inner = Tokenizer(tokenizer_models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    sample = TEXT.replace(" [", " ") if not merged else TEXT + " ".join(merged * 50) + " x" * 5
    trainer = BpeTrainer(
        vocab_size=420,
        min_frequency=2,
        show_progress=False,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator([sample * 20], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<|end|>", eos_token="<|end|>")


def _llama_like() -> PreTrainedTokenizerFast:
    inner = Tokenizer(tokenizer_models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", "<s>", "</s>", *fallback]
    trainer = BpeTrainer(vocab_size=480, show_progress=False, special_tokens=special)
    words = TEXT.replace("[", "[ ").split()
    inner.train_from_iterator([word for word in words for _ in range(3)], trainer)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(steps)
    return _with_bos(inner)


def _unigram() -> PreTrainedTokenizerFast:
    inner = Tokenizer(tokenizer_models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    trainer = UnigramTrainer(
        vocab_size=200,
        show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        initial_alphabet=[chr(code) for code in range(33, 127)],
    )
    inner.train_from_iterator([TEXT.replace("[", "[ "), " ".join(map(chr, range(33, 127))), "\n"], trainer)
    return _with_bos(inner)


def _with_bos(inner: Tokenizer) -> PreTrainedTokenizerFast:
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def causal_lm(architecture: str, vocabulary: int, positions: int = 1024, seed: int = 0) -> PreTrainedModel:
    """A random two-layer model whose predictions are far from uniform, in float32."""
    torch.manual_seed(seed)
    size: dict[str, Any] = {"vocab_size": vocabulary, "initializer_range": 0.25}
    size |= {"bos_token_id": None, "eos_token_id": None}
    if architecture == "llama":
        wide = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = LlamaConfig(**size, **wide, num_key_value_heads=2, max_position_embeddings=positions)
        model: PreTrainedModel = LlamaForCausalLM(config)
    elif architecture == "gpt_neox":
        wide = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**size, **wide, max_position_embeddings=positions))
    elif architecture == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**size, n_embd=32, n_layer=2, n_head=4, n_positions=positions))
    else:
        wide = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": positions}
        model = GPTJForCausalLM(GPTJConfig(**size, **wide))
    return model.eval()


@cache
def language_model(architecture: str, kind: str, batch_tokens: int = 16_384) -> LanguageModel:
    """The engine over a random model; shared by tests, so its counters go on counting."""
    words = tokenizer(kind)
    return LanguageModel(causal_lm(architecture, len(words) + 3), words, batch_tokens)
