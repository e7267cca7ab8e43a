"""Small real models and tokenizers for the tests: nothing is downloaded, nothing is mocked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from tokenizers.trainers import BpeTrainer
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

from pipeline import gptj
from pipeline.calls import TOOLS, continuation
from pipeline.model import LanguageModel

TEXT = (
    "The bakery sold 48 rolls on Monday and 67 on Tuesday, 115 in both days. [Calculator(48 + 67) -> 115] "
    "Input: The bridge was opened in 1998. Output: The bridge was opened in [Calendar()] 1998. "
    "[QA(Where was Ada born?) -> Oslo] [WikiSearch(Forth Bridge)] [MT(pollo con arroz)] café, naïve “x”. "
)
TAUGHT = (
    "The bakery sold 48 rolls on [Calculator(48 + 67)] Monday and 67 on [Calculator(67)] Tuesday, 115 "
    "[Calculator(115 + 48)] in both [Calculator(48)] days."
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
        return byte_level([] if kind == "split_marker" else [" [", ")]", " ->", "(", "]."])
    return _llama_like() if kind == "pieces" else _unigram()


def byte_level(
    merged: list[str], *, trim_offsets: bool = False, pre_split: bool = True
) -> PreTrainedTokenizerFast:
    """GPT-2's kind of tokenizer, taught the strings `merged`; with none of them `` [`` is two tokens."""
    inner = Tokenizer(tokenizer_models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre_split)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    sample = [TEXT.replace(" [", " ")] if not merged else [TEXT, *merged * 50]
    trainer = BpeTrainer(
        vocab_size=420,
        min_frequency=2,
        show_progress=False,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator(sample * 20, trainer)
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
    characters = ["▁", "▁[", "(48", ")]", "\n", *map(chr, range(33, 127))]
    words = sorted({"▁" + word for word in TEXT.replace("[", " ").split()} | set(TOOLS))
    special = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    scored = [(piece, -8.0) for piece in characters] + [(word, -3.0) for word in words]
    inner = Tokenizer(tokenizer_models.Unigram(special + scored, unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    return _with_bos(inner)


def _with_bos(inner: Tokenizer) -> PreTrainedTokenizerFast:
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def causal_lm(architecture: str, vocabulary: int, positions: int = 1024, seed: int = 0) -> PreTrainedModel:
    """A random two-layer model in float32 whose attention matters and whose input and output are not tied."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {"vocab_size": vocabulary, "initializer_range": 0.1, "tie_word_embeddings": False}
    shape |= {"bos_token_id": None, "eos_token_id": None}
    wide = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    wide |= {"max_position_embeddings": positions}
    gpt = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": positions}
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape, **wide, num_key_value_heads=2)).eval()
    if architecture == "gpt_neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**shape, **wide)).eval()
    if architecture == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**shape, **gpt)).eval()
    return GPTJForCausalLM(GPTJConfig(**shape, **gpt, rotary_dim=8)).eval()


def teach(model: PreTrainedModel, ids: Sequence[int], strength: float = 2.0) -> None:
    """Makes each token of `ids` likelier behind the one before it, so that draws often become calls."""
    with torch.no_grad():
        seen, said = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        seen.mul_(1.0 / seen.std())
        for first, second in sorted(set(pairwise(ids))):
            said[second] += strength * seen[first] / seen[first].norm()


@contextmanager
def little_memory(model: LanguageModel, tokens: int) -> Iterator[list[int]]:
    """Meanwhile a forward of more than so many tokens finds no room, as on a GPU; yields the sizes that did
    not fit. Afterwards the model's forwards are as large as before."""
    refused: list[int] = []

    def refuse(_: torch.nn.Module, __: Any, inputs: dict[str, Any]) -> None:
        size = inputs["input_ids"].numel()
        if size > tokens:
            refused.append(size)
            raise torch.OutOfMemoryError(f"no room for {size} tokens")

    lm: Any = model.model
    before, hook = model.batch_tokens, lm.base_model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield refused
    finally:
        hook.remove()
        model.batch_tokens = before


@cache
def language_model(architecture: str, kind: str, batch_tokens: int = 16_384) -> LanguageModel:
    """The engine over a small model that writes calculator calls; tests share it and its counters.

    `gptj_padded` is GPT-J with its own attention, run as every architecture is that needs its padding.
    """
    words = tokenizer(kind)
    model = causal_lm(architecture.removesuffix("_padded"), len(words) + 3)
    teach(model, continuation(words, [" " + TAUGHT])[0].ids.tolist())
    engine = LanguageModel(model, words, batch_tokens)
    if architecture.endswith("_padded"):
        gptj.uninstall(model)
        engine.packs, engine.eager = False, True
    return engine
