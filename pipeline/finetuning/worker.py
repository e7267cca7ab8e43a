"""What each worker of Ray Train does: load, resume, then train, evaluate and save until
`max_steps`, or until `patience` evaluations in a row were no better.

In: the configuration. Out: the counts of the data, returned; metrics.jsonl; a checkpoint for each
evaluation, reported to Ray Train. training.py has the model, batches.py the data of a step.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
from ray.train.v2.api.report_config import CheckpointUploadMode

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.batches import IndexedBatches
from pipeline.finetuning.choice import should_stop
from pipeline.finetuning.examples import load_examples
from pipeline.finetuning.metrics_log import HeldOutEvaluation, MetricsLog, evaluations
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
        return _train(arguments["config"])
    except (CheckpointError, OutputError):
        raise
    except ToolformerError as error:
        return error


def _train(config: FinetuneConfig) -> dict[str, int]:
    """The training loop: from the last checkpoint, if there is one, to `max_steps` or an early stop."""
    import torch
    from ray.train.torch import get_device

    from pipeline.finetuning.checkpointing import restore, save
    from pipeline.finetuning.deepspeed_settings import prepare_deepspeed
    from pipeline.finetuning.errors import CheckpointError
    from pipeline.finetuning.held_out import Evaluator
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
    # Only the first worker writes the metrics.
    log = MetricsLog(folder.metrics, steps_done).append if rank == 0 else lambda event: None
    evaluator = Evaluator(training, data.held_out)

    def evaluate(step: int) -> HeldOutEvaluation:
        evaluation, probe = evaluator.evaluate(step)
        if probe is not None:
            log(probe)
        log(evaluation)
        return evaluation

    evaluated = evaluations_so_far(folder.metrics, steps_done)
    if not steps_done:
        evaluate(0)
    for step in range(steps_done + 1, config.max_steps + 1):
        if should_stop(evaluated, config):
            break
        log(training.step(step))
        if step % config.evaluate_every == 0 or step == config.max_steps:
            evaluation = evaluate(step)
            evaluated.append(evaluation)
            checkpoint_folder = folder.checkpoints / f"step-{step:06d}"
            save(training, checkpoint_folder, step)
            ray.train.report(
                asdict(evaluation),
                checkpoint=ray.train.Checkpoint.from_directory(checkpoint_folder),
                checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
            )
    return data.counts()


def evaluations_so_far(metrics: Path, steps: int) -> list[HeldOutEvaluation]:
    """The evaluations up to `steps`, as the first worker reads them, so that all decide alike."""
    import torch.distributed as dist

    read: list[Any] = [evaluations(metrics, steps) if dist.get_rank() == 0 and steps else []]
    dist.broadcast_object_list(read, src=0)
    found: list[HeldOutEvaluation] = read[0]
    return found
