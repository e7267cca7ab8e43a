"""Two workers compute what a plain loop computes, whatever DeepSpeed divides, moves or recomputes.

The processes start once; bench/finetune_equality.py has more settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.finetune_equality import (
    ARCHITECTURES,
    TOLERANCE,
    Setting,
    Trained,
    configured,
    data_of,
    largest_difference,
    make_inputs,
    plain,
    probe,
    train,
)
from bench.fixtures.small_models import causal_lm
from bench.fixtures.worker_processes import Run, WorkerError, worker_processes
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.step.deepspeed_settings import packaged_file
from tools_service.base.errors import ConfigurationError

pytestmark = [pytest.mark.unit, pytest.mark.timeout(300)]

STEPS = 20


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with worker_processes(2) as run:
        yield run


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def losses(llama: Path) -> list[float]:
    return plain(configured(llama, Setting("plain", {}), max_steps=STEPS))[0]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_two_workers_have_the_losses_of_a_plain_loop(
    run: Run, llama: Path, losses: list[float], zero_stage: int, packing: bool
) -> None:
    """test_streaming.py compares the batches of the streamed reader, and one run of it on Ray."""
    setting = Setting("", {"zero_stage": zero_stage, "packing": packing})
    trained = run(train, configured(llama, setting, max_steps=STEPS))
    assert len(trained[0].losses) == STEPS
    assert largest_difference(trained, losses) < TOLERANCE
    assert losses[-1] < losses[0] - 1  # it learned something


@pytest.mark.parametrize(("name", "zero_stage"), [("zero2_offload", 2), ("zero3_offload", 3)])
def test_offloading_changes_no_loss(
    run: Run, llama: Path, losses: list[float], name: str, zero_stage: int
) -> None:
    """On a CPU nothing moves, but DeepSpeed goes the ways of offloading, with torch's fused optimizer."""
    setting = Setting("", {"zero_stage": zero_stage, "deepspeed": packaged_file(name)})
    trained = run(train, configured(llama, setting, max_steps=8, warmup_share=0.25))
    assert largest_difference(trained, losses[:8]) < TOLERANCE


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_bfloat16_trains_nearly_as_float32_with_states_in_float32(
    run: Run, llama: Path, losses: list[float], zero_stage: int
) -> None:
    setting = Setting("", {"zero_stage": zero_stage}, "bfloat16")
    trained = run(train, configured(llama, setting, max_steps=8, warmup_share=0.25))
    assert 0 < largest_difference(trained, losses[:8]) < 0.05
    assert all(own.state_dtypes == {"torch.float32"} for own in trained)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_architecture_is_trained_and_saved_as_in_a_plain_loop(
    run: Run, tmp_path: Path, architecture: str, tied: bool
) -> None:
    """With ZeRO-3 and recomputed activations: weights sharded, gathered and tied again in the file."""
    if tied and architecture not in ("gpt2", "qwen2"):
        pytest.skip("GPT-2 and small Qwen models are published with tied embeddings")
    folder = make_inputs(tmp_path, architecture, tied=tied)
    setting = Setting("", {"zero_stage": 3, "gradient_checkpointing": True})
    config = configured(folder, setting, max_steps=3)
    trained: list[Trained] = run(train, config, tmp_path / "saved")
    losses, norms, model = plain(config)
    assert largest_difference(trained, losses) < TOLERANCE
    assert trained[0].norms == pytest.approx(norms, rel=1e-3)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved" / "model")
    assert loaded.config.tie_word_embeddings is tied
    same = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert same is tied
    with torch.no_grad():
        text = probe(data_of(config))
        assert torch.allclose(loaded(text).logits, trained[0].logits, atol=1e-5)
        assert torch.allclose(loaded(text).logits, model(text).logits, atol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recomputed_activations_give_the_same_gradients(architecture: str) -> None:
    """GPT-2 has dropout, which must be drawn again alike."""
    model = causal_lm(architecture, 300, positions=64).train()
    ids = torch.arange(48).reshape(2, 24)
    found: list[dict[str, Any]] = []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        torch.manual_seed(0)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
        found.append({"loss": loss.detach(), **gradients})
    assert model.is_gradient_checkpointing
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def _refused(rank: int, config: FinetuneConfig) -> str:
    from pipeline.finetuning.step import engine_setup

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_setup, "unmet_requirement", lambda settings: "no disk here" if rank else "")
        with pytest.raises(ConfigurationError) as caught:
            train(rank, config)
    return str(caught.value)


def test_all_workers_stop_if_the_machine_of_one_lacks_something(run: Run, llama: Path) -> None:
    setting = Setting("", {"zero_stage": 3, "deepspeed": packaged_file("zero3_offload")})
    messages = run(_refused, configured(llama, setting))
    assert messages == [f"deepspeed {packaged_file('zero3_offload')}: no disk here"] * 2


def _fail(rank: int) -> int:
    if rank == 1:
        raise ValueError("worker 1 has no data")
    return rank


def test_an_error_of_a_worker_is_not_waited_for() -> None:
    with pytest.raises(WorkerError, match="worker 1 has no data"), worker_processes(2) as run:
        run(_fail)
