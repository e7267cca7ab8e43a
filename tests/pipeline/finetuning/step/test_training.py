"""The arithmetic of fine-tuning, against plain torch: one worker, no Ray."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.checkpoints.checkpointing import restore, save
from pipeline.finetuning.data.batches import IndexedBatches
from pipeline.finetuning.data.examples import Split
from pipeline.finetuning.errors import CheckpointError, DivergedError, NonFiniteLossError
from pipeline.finetuning.evaluation.held_out import held_out_loss
from pipeline.finetuning.step.training import Training
from tests.pipeline.finetuning.inputs import (
    base_model,
    configuration,
    flat,
    load_examples,
    mean_loss,
    plain_torch,
    rows,
    write,
)
from tools_service.base.errors import ToolformerError

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("process_group")]

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama and C* in files; GPT-2, whose dropout is not zero, beside it."""
    folder = tmp_path_factory.mktemp("training")
    base_model(folder / "base")
    base_model(folder / "gpt2", "gpt2", "bytes")
    write(folder / "augmented", [rows(24)])
    return folder


def start(config: FinetuneConfig) -> Training:
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    batches = IndexedBatches(data_of(config).train, config, rank=0)
    return Training(config, batches, tokenizer, rank=0, device=CPU)


def held_out(training: Training) -> tuple[float, int]:
    return held_out_loss(training, data_of(training.config).held_out)


def data_of(config: FinetuneConfig) -> Split:
    return load_examples(config, AutoTokenizer.from_pretrained(config.model.path))


def one_worker(folder: Path, **overrides: Any) -> FinetuneConfig:
    return configuration(folder, workers=1, **overrides)


@pytest.mark.parametrize(("zero_stage", "micro_batch_size"), [(0, 8), (1, 1), (2, 4), (3, 2)])
def test_steps_and_held_out_loss_are_those_of_plain_torch(
    folder: Path, tmp_path: Path, zero_stage: int, micro_batch_size: int
) -> None:
    config = one_worker(
        folder, zero_stage=zero_stage, micro_batch_size=micro_batch_size, max_steps=3, warmup_share=0.5
    )
    training = start(config)
    data = data_of(config)
    steps = [training.step(step) for step in (1, 2, 3)]
    losses, norms, model = plain_torch(config, data, 3)
    assert [step.loss for step in steps] == pytest.approx(losses, abs=1e-5)
    assert [step.learning_rate for step in steps] == [5e-4, 1e-3, 1e-3]
    if zero_stage:
        assert [step.gradient_norm for step in steps] == pytest.approx(norms, rel=1e-4)
    texts = range(len(data.held_out))
    loss, tokens = held_out(training)
    with torch.no_grad():
        assert loss == pytest.approx(float(mean_loss(model, data.held_out, texts)), abs=1e-5)
    assert tokens == sum(len(data.held_out[i]) - 1 for i in texts)
    save(training, tmp_path, 3)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        assert float(mean_loss(written, data.held_out, texts)) == pytest.approx(loss, abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert flat(load_examples(config, tokenizer).train) == flat(data.train)


def test_a_restored_run_goes_on_as_if_nothing_had_happened(folder: Path, tmp_path: Path) -> None:
    config = one_worker(folder, max_steps=6)
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"path": str(folder / "gpt2")})}
    )
    whole = start(config)
    for step in (1, 2, 3):
        whole.step(step)
    save(whole, tmp_path, 3)
    steps = [whole.step(step) for step in (4, 5)]
    resumed = start(config)
    assert restore(resumed, tmp_path) == 3
    assert [resumed.step(step) for step in (4, 5)] == steps
    assert held_out(resumed) == held_out_loss(whole, data_of(whole.config).held_out)


def test_without_a_checkpoint_restore_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolformerError, match="no checkpoint"):
        restore(start(one_worker(folder)), tmp_path)


def test_optimizer_states_on_nvme_are_never_resumed_in_part(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed would load the optimizer's part only, and say nothing."""
    training = start(one_worker(folder))
    save(training, tmp_path, 0)
    monkeypatch.setattr(training.engine, "zero_nvme_offload_optimizer", lambda: True)
    with pytest.raises(ToolformerError, match="optimizer states on NVMe cannot be resumed"):
        restore(training, tmp_path)


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_text(folder: Path) -> None:
    training = start(one_worker(folder))
    examples = training.batches.examples
    batch = training.batches.sampler.batch(1)
    tokens = {i: set(examples[i].tolist()) for i in batch}
    own = {i: tokens[i] - set().union(*(tokens[j] for j in batch if j != i)) for i in batch}
    index = next(i for i in batch if own[i])
    training.step(1)
    with torch.no_grad():
        training.engine.module.get_input_embeddings().weight[list(own[index])] = math.nan
    before = training.engine.module.model.norm.weight.detach().clone()
    with pytest.raises(NonFiniteLossError) as caught:
        training.step(2)
    assert (caught.value.step, caught.value.text_ids) == (2, [int(examples.text_ids[index])])
    assert f"text_id {examples.text_ids[index]}" in str(caught.value)
    assert torch.equal(training.engine.module.model.norm.weight, before)


@pytest.mark.parametrize("zero_stage", [2, 3])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_model_with_weights_that_are_no_numbers_is_not_trained(
    folder: Path, tmp_path: Path, zero_stage: int, number: float
) -> None:
    """Of a model of the hub, too, whose files the driver does not look at."""
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    with torch.no_grad():
        model.model.norm.weight[2] = number
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(folder / "base").save_pretrained(tmp_path / "model")
    config = one_worker(folder, zero_stage=zero_stage)
    path = config.model.model_copy(update={"path": str(tmp_path / "model")})
    with pytest.raises(CheckpointError, match=r"the weights model\.norm\.weight are not finite"):
        start(config.model_copy(update={"model": path}))


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_weights_that_are_no_numbers_are_never_saved_as_a_result(
    folder: Path, tmp_path: Path, zero_stage: int
) -> None:
    import deepspeed

    training = start(one_worker(folder, zero_stage=zero_stage))
    norm = training.engine.module.model.norm.weight
    with torch.no_grad(), deepspeed.zero.GatheredParameters([norm], modifier_rank=0, enabled=zero_stage == 3):
        norm[1] = math.nan
    with pytest.raises(DivergedError, match=r"weights model\.norm\.weight are empty or not finite"):
        save(training, tmp_path, 3)
    assert not (tmp_path / "model").exists()
    with pytest.raises(DivergedError, match="held-out loss is not finite"):
        held_out(training)


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    """Loading them could run code."""
    config = one_worker(folder)
    model = AutoModelForCausalLM.from_pretrained(config.model.path)
    model.config.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(config.model.path).save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    pickled = config.model_copy(update={"model": config.model.model_copy(update={"path": str(tmp_path)})})
    with pytest.raises(CheckpointError, match="safetensors"):
        start(pickled)
