"""A base model and a small C* in files, for the tests of fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import FinetuneConfig, ModelConfig
from pipeline.records import AUGMENTED_SCHEMA
from tests.models import causal_lm, tokenizer

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva")


def rows(count: int) -> list[dict[str, Any]]:
    """Texts of several lengths, each with one call."""
    made = []
    for i in range(count):
        a, b, name = i + 2, 3 * i + 1, NAMES[i % len(NAMES)]
        head = "It rained. " * (i % 4) + f"{name} has {a} rolls and buys {b}."
        plain = f"{head} That makes {a + b} rolls."
        text = f"{head} That makes [Calculator({a} + {b}) -> {a + b}] {a + b} rolls."
        made.append({"text_id": 1_000 - 7 * i, "text": text, "plain": plain, "tools": ["Calculator"]})
    return made


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
