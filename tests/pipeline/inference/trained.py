"""A small Llama that was trained to write calls, and tools that fail, wait and answer at length."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from functools import cache

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.engine.loading import prepare_language_model
from pipeline.engine.model import LanguageModel
from pipeline.syntax.tokenizer import tokenize_continuations
from tests.pipeline.scripted import tokenizer
from tools_service.contract.tool import ToolInput, ToolResult

_OPENINGS = ("The answer to", "He said that", "So", "Today it is", "the river is")


def prompt(rng: random.Random) -> str:
    """A prompt of the world that the model was trained on, of 3 to 20 tokens."""
    opening = " and ".join(rng.sample(_OPENINGS, rng.randint(1, 3)))
    return f"{opening} {rng.randint(1, 9)} + {rng.randint(1, 9)} is"


def _page(rng: random.Random) -> str:
    start = prompt(rng)
    expression = start.rsplit(" is", 1)[0].split(" ", 1)[1][-5:]
    tool = rng.choice(("Calculator", "QA", "WikiSearch", "MT"))
    result = " ".join(str(rng.randint(1, 9)) for _ in range(rng.choice((1, 1, 12))))
    return f"{start} [{tool}({expression}) -> {result}] {result[:3]} and so on."


@cache
def trained_model() -> LanguageModel:
    """Two layers, trained for a few seconds on pages with calls."""
    torch.manual_seed(3)
    words = tokenizer("words")
    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=400,
        max_position_embeddings=160,
        eos_token_id=words.eos_token_id,
    )
    network = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    rng = random.Random(5)
    for _ in range(150):
        pages = [
            [*tokenized.ids.tolist(), words.eos_token_id]
            for tokenized in tokenize_continuations(words, [f" {_page(rng)}" for _ in range(16)])
        ]
        longest = max(map(len, pages))
        labels = torch.tensor([page + [-100] * (longest - len(page)) for page in pages])
        loss = network(input_ids=labels.clamp(min=0), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # In float64 the order of two tokens does not depend on what is computed beside them.
    return prepare_language_model(network.double(), words)


class UnsteadyTools:
    """Answers by input and date alone: some fail, some are long, some wait while others overtake them."""

    def __init__(self, *, waits: bool) -> None:
        self.waits = waits

    def call(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        return [_answer(f"{tool} {one}") for one in inputs]

    async def acall(self, tool: str, inputs: Sequence[ToolInput]) -> list[ToolResult]:
        if self.waits:
            await asyncio.sleep(random.Random(str(inputs[0])).choice((0, 0, 0.005, 0.05)))
        return self.call(tool, inputs)


def _answer(asked: str) -> ToolResult:
    rng = random.Random(asked)
    kind = rng.choice(("fails", "short", "short", "long", "unsafe"))
    if kind == "fails":
        return ToolResult(reason="no_answer")
    if kind == "unsafe":
        return ToolResult("3] [QA(")
    return ToolResult(" ".join(str(rng.randint(1, 9)) for _ in range(30 if kind == "long" else 1)))
