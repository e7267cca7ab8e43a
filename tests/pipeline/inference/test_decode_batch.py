"""Batched decoding gives the same logits as each row run alone."""

from __future__ import annotations

import random

import pytest
import torch
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
)

from bench.fixtures.tiny_models import tiny_config, tiny_model
from pipeline.engine.loading import prepare_language_model
from pipeline.engine.model import LanguageModel
from pipeline.engine.row_cache import SavedRow
from pipeline.inference.decode_batch import DecodeBatch
from pipeline.inference.generation import Generation
from pipeline.inference.generator import Generator
from pipeline.inference.params import DecodingParams
from pipeline.syntax.tokenizer import decode_continuations
from tests.pipeline.scripted import tokenizer
from tools_service.config import ToolsConfig
from tools_service.tools.client import LocalTools

pytestmark = pytest.mark.unit
ARCHITECTURES = ["Llama", "GPT-NeoX", "GPT-2", "GPT-J", "deepseek_v3", "qwen3_moe"]
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 512}


def random_model(architecture: str, kind: str = "words") -> LanguageModel:
    """Two layers of random float32 weights, large enough that tokens differ in probability."""
    torch.manual_seed(7)
    network: PreTrainedModel
    if architecture == "Llama":
        network = LlamaForCausalLM(LlamaConfig(**WIDE, intermediate_size=64, max_position_embeddings=128))
    elif architecture == "GPT-NeoX":
        network = GPTNeoXForCausalLM(GPTNeoXConfig(**WIDE, intermediate_size=64, max_position_embeddings=128))
    elif architecture == "GPT-2":
        network = GPT2LMHeadModel(GPT2Config(**OLD))
    elif architecture != "GPT-J":  # keys and values of different sizes, experts
        network = tiny_model(tiny_config(architecture))
    else:
        network = GPTJForCausalLM(GPTJConfig(**OLD, rotary_dim=8))
    for weights in network.parameters():
        if weights.dim() > 1:
            torch.nn.init.normal_(weights, std=0.3)
    return prepare_language_model(network, tokenizer(kind))


def alone(model: LanguageModel, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_are_what_they_would_be_alone(architecture: str) -> None:
    """Whatever joins, leaves, waits outside or is rolled back beside them."""
    model, rng = random_model(architecture), random.Random(3)
    batch = DecodeBatch(model)
    texts: list[list[int]] = []
    outside: list[tuple[SavedRow, list[int]]] = []

    def some(most: int) -> list[int]:
        return [rng.randrange(300) for _ in range(rng.randint(1, most))]

    for step in range(40):
        if step % 5 == 0:  # new rows, and rows that were outside
            back, outside = outside[:2], outside[2:]
            new = [some(9) for _ in range(2)]
            chunks = [some(7) for _ in back]
            batch.join([saved for saved, _ in back] + [SavedRow()] * len(new), chunks + new)
            texts += [text + chunk for (_, text), chunk in zip(back, chunks, strict=True)] + new
        for row, text in enumerate(texts):
            torch.testing.assert_close(batch.logits[row], alone(model, text), rtol=0, atol=1e-4)
        if step % 3 == 2:
            row = rng.randrange(len(texts))
            keep = rng.randint(1, len(texts[row]))
            batch.truncate(row, keep)
            del texts[row][keep:]
        while len(texts) > 4:
            row = rng.randrange(len(texts))
            saved = batch.save(row)
            keep = rng.randint(1, saved.length)
            outside.append((saved.truncated(keep), texts[row][:keep]))
            batch.remove(row)
            last = texts.pop()
            if row < len(texts):
                texts[row] = last
        tokens = [rng.randrange(300) for _ in texts]
        batch.step(tokens)
        for text, token in zip(texts, tokens, strict=True):
            text.append(token)
        assert [batch.length(row) for row in range(len(batch))] == [len(text) for text in texts]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_that_left_one_batch_go_on_in_another(architecture: str) -> None:
    model, batch = random_model(architecture), DecodeBatch(random_model(architecture))
    texts = [[5, 6, 7, 8, 9], [3], [4, 4, 2]]
    batch.join([SavedRow()] * 3, texts)
    saved = [batch.save(row) for row in range(3)]
    other = DecodeBatch(model)
    other.join([saved[1], SavedRow(), saved[0]], [[11, 12], [7], [13]])
    for row, text in enumerate([[3, 11, 12], [7], [5, 6, 7, 8, 9, 13]]):
        torch.testing.assert_close(other.logits[row], alone(model, text), rtol=0, atol=1e-4)


def test_the_cache_has_not_room_for_most_rows_times_the_longest() -> None:
    model = random_model("Llama")
    batch = DecodeBatch(model)
    rows = [[token] for token in range(32)]
    batch.join([SavedRow()] * 32, rows)
    while len(batch) > 1:
        batch.remove(len(batch) - 1)
    batch.join([SavedRow()], [list(range(100))])
    batch.step([1, 2])
    torch.testing.assert_close(batch.logits[0], alone(model, [0, 1]), rtol=0, atol=1e-4)
    keys, _ = batch._cache.buffers[0]
    assert keys.shape[0] * keys.shape[2] < 4 * 2 * 101
    batch.remove(1)
    batch.join([SavedRow()] * 32, rows)
    keys, _ = batch._cache.buffers[0]
    assert keys.shape[0] * keys.shape[2] < 4 * 33 * 16
    torch.testing.assert_close(batch.logits[0], alone(model, [0, 1]), rtol=0, atol=1e-4)


def test_a_row_is_cut_to_tokens_that_it_has() -> None:
    batch = DecodeBatch(random_model("Llama"))
    batch.join([SavedRow(), SavedRow()], [[1, 2], [3]])
    for row, length in ((0, 3), (0, 0), (1, 2)):
        with pytest.raises(ValueError, match=f"row {row} cannot be cut to {length} of its {2 - row} tokens"):
            batch.truncate(row, length)


def test_a_row_needs_a_token() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        DecodeBatch(random_model("Llama")).join([SavedRow(), SavedRow()], [[1], []])


PROMPTS = ["The river", "27 + 4 is", "He said that the answer to 27 + 4 is", "Today"]


def texts(model: LanguageModel, prompts: list[str], k: int) -> list[Generation]:
    generator = Generator(model, LocalTools({}, ToolsConfig()))
    return list(generator.generate(prompts, DecodingParams(k=k, max_new_tokens=12)))


@pytest.mark.parametrize("kind", ["words", "bytes"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_says_what_its_prompts_say_alone(architecture: str, kind: str) -> None:
    model = random_model(architecture, kind)
    for k in (0, 3, 512):
        assert texts(model, PROMPTS, k) == [texts(model, [prompt], k)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_call_rolled_back_leaves_no_trace(architecture: str) -> None:
    model = random_model(architecture)
    without, begun = texts(model, PROMPTS, 0), texts(model, PROMPTS, 512)
    assert all(len(generation.failed) == 1 for generation in begun)
    assert [generation.text for generation in begun] == [generation.text for generation in without]
    assert len({generation.text for generation in without}) > 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decoding_without_calls_is_that_of_transformers(architecture: str) -> None:
    model = random_model(architecture)
    for prompt in PROMPTS:
        ids = torch.tensor([Generator(model, LocalTools({}, ToolsConfig())).encode(prompt)])
        model.model.generation_config.eos_token_id = model.tokenizer.eos_token_id
        banned = [*range(len(model.call_tokens.token_strings), 512), *model.call_tokens.api]
        whole = model.model.generate(
            ids, max_new_tokens=12, do_sample=False, suppress_tokens=banned, pad_token_id=0
        )
        [found] = texts(model, [prompt], 0)
        expected = [
            token for token in whole[0, ids.shape[1] :].tolist() if token != model.tokenizer.eos_token_id
        ]
        assert found.tokens == len(expected)
        assert [found.text] == decode_continuations(model.tokenizer, [expected])
