"""A worker of test_resharding.py: `python -m … FOLDER RANK WORLD PORT SAVE`, one process a rank.

With SAVE = 1 it trains and saves a checkpoint of each run in the middle; with 0 it goes on from those
that others have saved. The first writes the losses of the second half, by run, to FOLDER/losses.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from pipeline.base.finetune_config import LoraConfig

HALF = 3
# Settings of each run; the last two train adapters only.
RUNS: dict[str, dict[str, Any]] = {f"zero{stage}": {"zero_stage": stage} for stage in range(4)} | {
    f"adapters{stage}": {"zero_stage": stage, "lora": LoraConfig(rank=4)} for stage in (2, 3)
}
LOSSES = "losses.json"
MICRO_BATCH = {1: 6, 2: 3, 3: 2}  # by the number of workers


def main(folder: Path, rank: int, world: int, port: int, saves: bool) -> dict[str, list[float]]:
    from pipeline.finetuning.step.accelerator import prepare_deepspeed

    prepare_deepspeed(use_gpu=False)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in ranks.items()} | {"MASTER_ADDR": "127.0.0.1"}
    dist.init_process_group("gloo")
    losses = {name: _losses(folder, rank, world, name, saves) for name in RUNS}
    dist.barrier()
    dist.destroy_process_group()
    return losses


def _losses(folder: Path, rank: int, world: int, name: str, saves: bool) -> list[float]:
    import torch
    from transformers import AutoTokenizer

    from pipeline.finetuning.checkpoints.checkpointing import STATE, restore, save, workers_of
    from pipeline.finetuning.data.batches import IndexedBatches
    from pipeline.finetuning.step.training import Training
    from tests.pipeline.finetuning.inputs import configuration, load_examples

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


if __name__ == "__main__":
    folder, *numbers = sys.argv[1:]
    rank, world, port, saves = map(int, numbers)
    losses = main(Path(folder), rank, world, port, bool(saves))
    if rank == 0:
        (Path(folder) / LOSSES).write_text(json.dumps(losses))
