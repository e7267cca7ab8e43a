"""A worker of test_resharding.py: `python -m … FOLDER RANK WORLD PORT SAVE LORA`, one process a rank.

With SAVE = 1 it trains and saves a checkpoint for each ZeRO stage in the middle; with 0 it goes on from those
that others have saved. LORA is the rank of adapters, 0 for none. The first writes the losses of the second
half, by stage, to FOLDER/losses.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

STAGES, HALF = (0, 1, 2, 3), 3
LOSSES = "losses.json"
MICRO_BATCH = {1: 6, 2: 3, 3: 2}  # by the number of workers


def main(folder: Path, rank: int, world: int, port: int, saves: bool, lora: int) -> dict[int, list[float]]:
    from pipeline.finetuning.deepspeed_settings import prepare_deepspeed

    prepare_deepspeed(use_gpu=False)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in ranks.items()} | {"MASTER_ADDR": "127.0.0.1"}
    dist.init_process_group("gloo")
    losses = {stage: _losses(folder, rank, world, stage, saves, lora) for stage in STAGES}
    dist.barrier()
    dist.destroy_process_group()
    return losses


def _losses(folder: Path, rank: int, world: int, stage: int, saves: bool, lora: int) -> list[float]:
    import torch
    from transformers import AutoTokenizer

    from pipeline.base.finetune_config import LoraConfig
    from pipeline.finetuning.batches import IndexedBatches
    from pipeline.finetuning.checkpointing import STATE, restore, save, workers_of
    from pipeline.finetuning.examples import load_examples
    from pipeline.finetuning.training import Training
    from tests.pipeline.finetuning.data import configuration

    adapters = LoraConfig(rank=lora)
    values = {"batch_size": 12, "max_steps": 2 * HALF, "learning_rate": 1e-2, "lora": adapters}
    config = configuration(
        folder, workers=world, micro_batch_size=MICRO_BATCH[world], zero_stage=stage, **values
    )
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    batches = IndexedBatches(load_examples(config, tokenizer).train, config, rank)
    training = Training(config, batches, tokenizer, rank=rank, device=torch.device("cpu"))
    checkpoint = folder / f"zero{stage}"
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
    rank, world, port, saves, lora = map(int, numbers)
    losses = main(Path(folder), rank, world, port, bool(saves), lora)
    if rank == 0:
        (Path(folder) / LOSSES).write_text(json.dumps(losses))
