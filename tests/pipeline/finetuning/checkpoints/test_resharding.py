"""A run saved by two workers goes on with one or three: the same losses, at every stage and for adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from bench.fixtures.worker_processes import worker_processes
from pipeline.base.finetune_config import LoraConfig
from pipeline.finetuning.checkpoints.checkpointing import STATE, restore, save, workers_of
from pipeline.finetuning.data.batches import IndexedBatches
from pipeline.finetuning.step.training import Training
from tests.pipeline.finetuning.inputs import base_model, configuration, load_examples, rows, write

pytestmark = pytest.mark.unit

HALF = 3
# Settings of each run; the last two train adapters only.
RUNS: dict[str, dict[str, Any]] = {f"zero{stage}": {"zero_stage": stage} for stage in range(4)} | {
    f"adapters{stage}": {"zero_stage": stage, "lora": LoraConfig(rank=4)} for stage in (2, 3)
}
MICRO_BATCH = {1: 6, 2: 3, 3: 2}  # by the number of workers


def second_half(rank: int, folder: Path, world: int, saves: bool) -> dict[str, list[float]]:
    """The losses of the second half of each run; runs on every worker.

    With `saves` it trains from the beginning and saves a checkpoint in the middle; else it goes on from that.
    """
    return {name: losses_of(folder, rank, world, name, saves) for name in RUNS}


def losses_of(folder: Path, rank: int, world: int, name: str, saves: bool) -> list[float]:
    sizes = {"workers": world, "micro_batch_size": MICRO_BATCH[world]}
    values = sizes | {"batch_size": 12, "max_steps": 2 * HALF, "learning_rate": 1e-2}
    config = configuration(folder, **values, **RUNS[name])
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    batches = IndexedBatches(load_examples(config, tokenizer).train, config, rank)
    training = Training(config, batches, tokenizer, rank=rank, device=torch.device("cpu"))
    checkpoint = folder / name
    if saves:
        for step in range(1, HALF + 1):
            training.step(step)
        save(training, checkpoint, HALF)
    else:
        saved_by = workers_of(path.name for path in (checkpoint / STATE).iterdir())
        assert restore(training, checkpoint, saved_by, converts=rank == 0) == HALF
    return [training.step(step).loss for step in range(HALF + 1, 2 * HALF + 1)]


@pytest.mark.timeout(600)
def test_a_run_goes_on_with_one_or_three_workers_instead_of_two(tmp_path: Path) -> None:
    """The micro-batches are of other sizes, too."""
    base_model(tmp_path / "base")
    write(tmp_path / "augmented", [rows(40)])
    with worker_processes(2) as run:
        undisturbed = run(second_half, tmp_path, 2, True)[0]
    before = set(tmp_path.rglob("*"))
    for world in (1, 3):
        with worker_processes(world) as run:
            losses = run(second_half, tmp_path, world, False)[0]
        assert losses.keys() == RUNS.keys()
        for name, expected in undisturbed.items():
            assert losses[name] == pytest.approx(expected, abs=1e-5), f"{name}, {world} workers"
    assert set(tmp_path.rglob("*")) <= before, "nothing converted is left"


ONE = "zero_pp_rank_{}_mp_rank_00_{}_states.pt"


@pytest.mark.parametrize(
    ("names", "workers"),
    [
        (["mp_rank_00_model_states.pt"], 0),
        (["mp_rank_00_model_states.pt", *(ONE.format(rank, "optim") for rank in range(12))], 12),
        (["bf16_" + ONE.format(rank, kind) for rank in (0, 1) for kind in ("optim", "model")], 2),
    ],
)
def test_the_names_of_the_shards_tell_how_many_workers_saved_them(names: list[str], workers: int) -> None:
    assert workers_of(names) == workers
