"""What each worker of Ray Train does: load, resume, then train, evaluate and save until `max_steps`.

In: the configuration. Out: the counts of the data, returned; metrics.jsonl; a checkpoint for each
evaluation, reported to Ray Train. training.py has the model, batches.py the data of a step.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
from ray.train.v2.api.report_config import CheckpointUploadMode

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.batches import IndexedBatches
from pipeline.finetuning.examples import load_examples
from pipeline.finetuning.metrics_log import HeldOutEvaluation
from pipeline.finetuning.reporter import reporting
from pipeline.finetuning.run_folder import RunFolder
from tools_service.base.errors import ToolformerError
from tools_service.base.files import OutputError


def run_worker(arguments: dict[str, Any]) -> dict[str, int] | ToolformerError:
    """Runs on every worker; returns the counts of the data.

    Our own errors occur on all workers alike, so they are returned: another try would fail again.
    An error while loading or writing a checkpoint may concern one node only, and the other workers
    would wait for it. It is raised, and Ray Train restarts all workers.
    """
    from pipeline.finetuning.errors import CheckpointError

    try:
        with ExitStack() as stack:
            return _train(arguments["config"], stack)
    except (CheckpointError, OutputError):
        raise
    except ToolformerError as error:
        return error


def _train(config: FinetuneConfig, stack: ExitStack) -> dict[str, int]:
    """The training loop: from the last checkpoint, if there is one, to `max_steps`."""
    import torch
    from ray.train.torch import get_device

    from pipeline.finetuning.checkpointing import restore, save
    from pipeline.finetuning.deepspeed_settings import prepare_deepspeed
    from pipeline.finetuning.errors import CheckpointError
    from pipeline.finetuning.held_out import held_out_loss
    from pipeline.finetuning.training import Training
    from tools_service.base.checkpoints import load_tokenizer

    prepare_deepspeed(config.use_gpu)
    torch.set_num_threads(config.cpus_per_worker)
    tokenizer = load_tokenizer(config.model.path, "model.path", CheckpointError)
    data = load_examples(config, tokenizer)
    rank = ray.train.get_context().get_world_rank()
    batches = IndexedBatches(data.train, config, rank)
    training = Training(config, batches, tokenizer, rank=rank, device=get_device())
    checkpoint = ray.train.get_checkpoint()
    steps_done = restore(training, Path(checkpoint.path)) if checkpoint else 0
    folder = RunFolder(config.output)
    log = stack.enter_context(reporting(config, steps_done, rank))
    if not steps_done:
        log(HeldOutEvaluation(0, *held_out_loss(training, data.held_out)))
    for step in range(steps_done + 1, config.max_steps + 1):
        log(training.step(step))
        if step % config.evaluate_every == 0 or step == config.max_steps:
            evaluation = HeldOutEvaluation(step, *held_out_loss(training, data.held_out))
            log(evaluation)
            checkpoint_folder = folder.checkpoints / f"step-{step:06d}"
            save(training, checkpoint_folder, step)
            ray.train.report(
                asdict(evaluation),
                checkpoint=ray.train.Checkpoint.from_directory(checkpoint_folder),
                checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
            )
    return data.counts()
