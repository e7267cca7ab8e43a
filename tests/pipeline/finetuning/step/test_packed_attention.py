"""Packed rows in models: the losses and gradients of single examples, or a refusal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from bench.fixtures.small_models import ARCHITECTURES, causal_lm, tokenizer
from pipeline.base.config import ModelConfig
from pipeline.finetuning.data.batches import (
    IGNORED,
    PADDING,
    IndexedBatches,
    MicroBatch,
    StepBatch,
    micro_batch,
)
from pipeline.finetuning.errors import PackingError
from pipeline.finetuning.step.packed_attention import packed_inputs
from pipeline.finetuning.step.training import Training
from tests.pipeline.finetuning.inputs import configuration, encode, load_examples, rows, write

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("process_group")]

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}


def small_model(architecture: str, vocabulary: int) -> PreTrainedModel:
    torch.manual_seed(0)
    if architecture == "qwen3":
        sizes = {"intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 16}
        return Qwen3ForCausalLM(Qwen3Config(vocab_size=vocabulary, **SMALL, **sizes)).eval()
    if architecture == "opt":
        return OPTForCausalLM(
            OPTConfig(vocab_size=vocabulary, ffn_dim=96, word_embed_proj_dim=64, **SMALL)
        ).eval()
    if architecture == "bloom":
        return BloomForCausalLM(
            BloomConfig(vocab_size=vocabulary, n_layer=2, hidden_size=64, n_head=4)
        ).eval()
    return causal_lm(architecture, vocabulary).eval()


def nll(model: PreTrainedModel, rows_: MicroBatch) -> torch.Tensor:
    """The sum over all labels."""
    packed = {} if rows_.segments is None else packed_inputs(rows_.segments, model, CPU)
    logits = model(input_ids=torch.from_numpy(rows_.ids), **packed, use_cache=False).logits
    labels = torch.from_numpy(rows_.labels).flatten()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels, ignore_index=IGNORED, reduction="sum"
    )


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "qwen3", "opt"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_and_gradient_are_those_of_single_examples(
    tmp_path: Path, architecture: str, attention: str
) -> None:
    if architecture == "gptj" and attention == "sdpa":
        pytest.skip("transformers has no sdpa for GPT-J")
    words = tokenizer("bytes")
    model = small_model(architecture, len(words))
    model.set_attn_implementation(attention)
    texts = [row["text"] for row in rows(9)]
    examples = encode(words, np.arange(9), texts, 128)
    sizes = {"workers": 1, "batch_size": 8, "micro_batch_size": 2, "packing": True}
    batch = IndexedBatches(examples, configuration(tmp_path, **sizes), 0).batch(1)
    used = [text_id for rows_ in batch.micro_batches for row in rows_.text_ids for text_id in row]
    assert len(used) == 8
    assert max(len(row) for rows_ in batch.micro_batches for row in rows_.text_ids) > 1
    alone = [micro_batch(examples, np.array([index])) for index in used]
    results = []
    for passes in (batch.micro_batches, alone):
        model.zero_grad()
        loss = sum((nll(model, rows_) / batch.predicted_tokens for rows_ in passes), torch.zeros(()))
        loss.backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        results.append((loss.item(), torch.cat(gradients)))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-5)
    # The same rows without mask and positions leak.
    leaking = [MicroBatch(r.ids, r.labels, r.text_ids) for r in batch.micro_batches]
    with torch.no_grad():
        leaked = sum(float(nll(model, rows_)) for rows_ in leaking) / batch.predicted_tokens
    assert abs(leaked - results[1][0]) > 1e-4


def training(tmp_path: Path, model: PreTrainedModel, **overrides: Any) -> Training:
    words = tokenizer("bytes")
    model.save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    write(tmp_path / "augmented", [rows(24)])
    path = ModelConfig(path=str(tmp_path / "base"), dtype="float32", device="cpu")
    config = configuration(tmp_path, model=path, workers=1, **overrides)
    data = load_examples(config, AutoTokenizer.from_pretrained(tmp_path / "base"))
    return Training(config, IndexedBatches(data.train, config, 0), words, rank=0, device=CPU)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_steps_are_those_without_packing(tmp_path: Path, zero_stage: int) -> None:
    """With two forwards in a step where DeepSpeed is told of four."""
    model = small_model("llama", len(tokenizer("bytes")))
    steps = []
    for name, packing in (("packed", True), ("padded", False)):
        sizes = {"zero_stage": zero_stage, "sequence_length": 256}
        started = training(tmp_path / name, model, packing=packing, **sizes)
        assert len(started.batches.batch(1).micro_batches) == (2 if packing else 4)
        steps.append([started.step(step) for step in (1, 2, 3, 4)])
    packed, padded = steps
    assert [s.loss for s in packed] == pytest.approx([s.loss for s in padded], abs=1e-5)
    assert [s.learning_rate for s in packed] == [s.learning_rate for s in padded]
    if zero_stage:
        norms = [[s.gradient_norm for s in taken] for taken in steps]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_a_model_without_position_ids_is_refused(tmp_path: Path) -> None:
    model = small_model("bloom", len(tokenizer("bytes")))
    with pytest.raises(PackingError, match=r"^packing: BloomForCausalLM .*set packing to false"):
        training(tmp_path, model, packing=True)


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
def test_a_model_that_ignores_mask_or_positions_is_refused(
    tmp_path: Path, ignored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model("gpt2", len(tokenizer("bytes")))
    forward = type(model).forward

    def without(self: Any, *args: Any, **inputs: Any) -> Any:
        if inputs.pop(ignored, None) is not None and ignored == "attention_mask":
            inputs[ignored] = torch.ones_like(inputs["input_ids"])
        return forward(self, *args, **inputs)

    monkeypatch.setattr(type(model), "forward", without)
    with pytest.raises(PackingError, match=r"lets the examples of a row see one another: .* nats"):
        training(tmp_path, model, packing=True)


@dataclass
class WithEmptyRows:
    """Batches with a micro-batch more, as a worker has it for which no examples are left."""

    batches: Any

    def batch(self, step: int) -> StepBatch:
        """The batch of optimizer step `step`."""
        batch = self.batches.batch(step)
        empty = np.full((1, 2), IGNORED)
        nothing = MicroBatch(np.zeros((1, 2), dtype=np.int64), empty, ((),), np.full((1, 2), PADDING))
        return StepBatch((*batch.micro_batches, nothing), batch.predicted_tokens)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_rows_without_examples_change_nothing(tmp_path: Path, zero_stage: int) -> None:
    model = small_model("llama", len(tokenizer("bytes")))
    steps = []
    for name in ("whole", "with empty rows"):
        sizes = {"zero_stage": zero_stage, "sequence_length": 256}
        started = training(tmp_path / name, model, packing=True, **sizes)
        if name != "whole":
            started.batches = WithEmptyRows(started.batches)
        steps.append([started.step(step) for step in (1, 2, 3)])
    assert [s.loss for s in steps[0]] == pytest.approx([s.loss for s in steps[1]], abs=1e-6)
    if zero_stage:
        norms = [[s.gradient_norm for s in taken] for taken in steps]
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)
