"""What a step's FLOPs and tokens are, counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.base.cost import ModelShape
from pipeline.base.finetune_config import LoraConfig
from pipeline.base.records import Cost
from pipeline.finetuning.data.batches import IGNORED, MicroBatch, StepBatch
from pipeline.finetuning.watching.step_meter import StepMeter, batch_cost, example_lengths
from tests.pipeline.finetuning.inputs import base_model, configuration

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


def rows(lengths: list[int], width: int = 8, segments: list[list[int]] | None = None) -> MicroBatch:
    """Examples of so many tokens, one a row; or rows of several, by the number of each token's example."""
    labels = np.full((len(lengths), width), IGNORED, dtype=np.int64)
    for row, length in enumerate(lengths):
        labels[row, : length - 1] = 1
    ids = np.zeros_like(labels)
    return MicroBatch(ids, labels, ((1,),) * len(lengths), None if segments is None else np.array(segments))


def both_workers(value: torch.Tensor) -> torch.Tensor:
    """As if another worker had a batch of the same lengths."""
    return 2 * value


def test_padding_is_not_counted() -> None:
    batch = StepBatch((rows([3, 8]), rows([2, 5])), 14)
    assert example_lengths(batch.micro_batches[0]).tolist() == [3, 8]
    assert batch_cost(batch) == Cost(18, attention_pairs=6 + 36 + 3 + 15, logits=18)


def test_an_example_reaches_over_labels_that_are_left_out() -> None:
    masked = rows([8])
    masked.labels[0, 2:5] = IGNORED  # the result of a call
    assert example_lengths(masked).tolist() == [8]


def test_packed_examples_are_counted_apart() -> None:
    packed = rows([8], segments=[[0, 0, 0, 1, 1, 1, -1, -1]])
    assert example_lengths(packed).tolist() == [3, 3]
    assert batch_cost(StepBatch((packed,), 4)).attention_pairs == 2 * 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meter")
    base_model(folder / "base")
    return folder


def test_measures_are_those_of_all_workers(folder: Path) -> None:
    shape = ModelShape.of(AutoModelForCausalLM.from_pretrained(folder / "base"))
    batch = StepBatch((rows([3, 8]),), 9)
    forward = shape.flops(Cost(22, attention_pairs=2 * (6 + 36), logits=22))
    blocks = shape.flops(Cost(22, attention_pairs=2 * (6 + 36)))
    measured = StepMeter(configuration(folder), CPU).measures(batch, 2.0, both_workers)
    assert (measured.seconds, measured.tokens_per_s) == (2.0, 11.0)
    assert measured.flops_per_s == 3 * forward / 2
    assert (measured.hardware_flops_per_s, measured.utilisation) == (None, None)
    assert measured.memory_bytes is not None
    assert measured.memory_bytes > 10**7
    again = StepMeter(configuration(folder, gradient_checkpointing=True), CPU)
    recomputed = again.measures(batch, 2.0, both_workers)
    assert recomputed.flops_per_s == measured.flops_per_s
    assert recomputed.hardware_flops_per_s == (3 * forward + blocks) / 2


def test_matrices_that_are_not_trained_have_no_gradient(folder: Path) -> None:
    config = configuration(folder, lora=LoraConfig(rank=4))
    shape = ModelShape.of(AutoModelForCausalLM.from_pretrained(folder / "base"))
    matrices, attention = shape.flops(Cost(3, logits=3)), shape.flops(Cost(attention_pairs=6))
    measured = StepMeter(config, CPU).measures(StepBatch((rows([3]),), 2), 1.0, lambda value: value)
    assert measured.flops_per_s == 2 * matrices + 3 * attention


def test_utilisation_is_the_share_of_all_gpus_peaks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)
    meter = StepMeter(configuration(folder), torch.device("cuda"))
    monkeypatch.setattr(meter, "_sums_on", CPU)
    measured = meter.measures(StepBatch((rows([8]),), 7), 0.5, both_workers)
    assert measured.flops_per_s is not None
    assert measured.utilisation == measured.flops_per_s / (2 * 989e12)
    assert measured.memory_bytes == 123
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Unknown 9000")
    unknown = StepMeter(configuration(folder), torch.device("cuda"))
    monkeypatch.setattr(unknown, "_sums_on", CPU)
    assert unknown.measures(StepBatch((rows([8]),), 7), 0.5, both_workers).utilisation is None
