"""A base model and a small C* in files, and fine-tuning in plain torch, for the tests of fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.fixtures.small_models import causal_lm, tokenizer
from pipeline.base.config import ModelConfig
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.base.records import AUGMENTED_SCHEMA
from pipeline.finetuning.augmented_files import Indices
from pipeline.finetuning.batches import EpochSampler
from pipeline.finetuning.examples import ExampleEncoder, Examples, Split
from pipeline.finetuning.schedule import rate_factor

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva")


def rows(count: int) -> list[dict[str, Any]]:
    """Texts of several lengths, each with one call."""
    made = []
    for i in range(count):
        a, b, name = i + 2, 3 * i + 1, NAMES[i % len(NAMES)]
        head = "It rained. " * (i % 4) + f"{name} has {a} rolls and buys {b}."
        plain = f"{head} That makes {a + b} rolls."
        text = f"{head} That makes [Calculator({a} + {b}) -> {a + b}] {a + b} rolls."
        made.append({"text_id": 1_000 - 7 * i, "text": text, "plain": plain, "tool_names": ["Calculator"]})
    return made


def encode(
    words: Any, text_ids: Indices, texts: Sequence[str], length: int, plain: Sequence[str] | None = None
) -> Examples:
    """The examples of these texts, whose calls are those that `plain` does not have."""
    return ExampleEncoder(words, length, ()).batch(text_ids, texts, plain or texts)


def flat(examples: Examples) -> list[int]:
    """All tokens, one example after another."""
    return [int(token) for index in range(len(examples)) for token in examples[index]]


def write(folder: Path, parts: Sequence[Sequence[dict[str, Any]]]) -> Path:
    """C* as merge writes it: Parquet files beside a manifest."""
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    for number, part in enumerate(parts):
        table = pa.Table.from_pylist(list(part), schema=AUGMENTED_SCHEMA)
        pq.write_table(table, folder / f"part-{number:05d}.parquet")
    return folder


def base_model(folder: Path, architecture: str = "llama", kind: str = "pieces") -> Path:
    words = tokenizer(kind)
    causal_lm(architecture, len(words)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def configuration(folder: Path, **overrides: Any) -> FinetuneConfig:
    """Two workers on CPU, over folder/base and folder/augmented."""
    model = ModelConfig(path=str(folder / "base"), dtype="float32", device="cpu")
    values: dict[str, Any] = {
        "model": model,
        "data": folder / "augmented",
        "output": folder / "model",
        "sequence_length": 128,
        "batch_size": 8,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "max_steps": 4,
        "evaluate_every": 2,
        "held_out": 5,
        "workers": 2,
        "use_gpu": False,
        "zero_stage": 2,
        "gradient_checkpointing": False,
    }
    return FinetuneConfig(**values | overrides)


def mean_loss(model: PreTrainedModel, examples: Examples, indices: Iterable[int]) -> torch.Tensor:
    """Text by text, without padding."""
    total, tokens = torch.zeros(()), 0
    for index in indices:
        ids = torch.tensor(examples[index], dtype=torch.int64)[None]
        total = total + F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        tokens += ids.shape[1] - 1
    return total / tokens


def plain_torch(
    config: FinetuneConfig, data: Split, steps: int
) -> tuple[list[float], list[float], PreTrainedModel]:
    """Losses and gradient norms of the first steps, and the model after them."""
    model = AutoModelForCausalLM.from_pretrained(config.model.path)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    sampler, losses, norms = EpochSampler(len(data.train), config.batch_size, config.seed), [], []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate_factor(config)(step)
        optimizer.zero_grad()
        loss = mean_loss(model, data.train, sampler.batch(step).tolist())
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, model.eval()
