"""What each worker of Ray Train does: load, resume, then train, evaluate and save until `max_steps`.

In: the run. Out: the counts of the data, returned; metrics.jsonl; a checkpoint for each evaluation,
reported to Ray Train. training.py has the model, batches.py the data of a step, worker_checkpoints.py
what is saved.
"""

from __future__ import annotations

from typing import Any

import ray.train

from pipeline.finetuning.batches import IndexedBatches
from pipeline.finetuning.examples import load_examples
from pipeline.finetuning.metrics_log import HeldOutEvaluation, MetricsLog
from pipeline.finetuning.run_folder import RunFolder, RunIdentity
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
        return _train(arguments["run"])
    except (CheckpointError, OutputError):
        raise
    except ToolformerError as error:
        return error


def _train(run: RunIdentity) -> dict[str, int]:
    """The training loop: from the last checkpoint, if there is one, to `max_steps`."""
    import torch
    from ray.train.torch import get_device

    from pipeline.finetuning.deepspeed_settings import prepare_deepspeed
    from pipeline.finetuning.errors import CheckpointError
    from pipeline.finetuning.held_out import held_out_loss
    from pipeline.finetuning.training import Training
    from pipeline.finetuning.worker_checkpoints import WorkerCheckpoints
    from tools_service.base.checkpoints import load_tokenizer

    config = run.config
    prepare_deepspeed(config.use_gpu)
    torch.set_num_threads(config.cpus_per_worker)
    tokenizer = load_tokenizer(config.model.path, "model.path", CheckpointError)
    data = load_examples(config, tokenizer)
    rank = ray.train.get_context().get_world_rank()
    batches = IndexedBatches(data.train, config, rank)
    training = Training(
        config, batches, tokenizer, rank=rank, device=get_device(), warmup_steps=run.warmup_steps
    )
    checkpoints = WorkerCheckpoints(config)
    steps_done = checkpoints.resume(training)
    # Only the first worker writes the metrics.
    log = MetricsLog(RunFolder(config.output).metrics, steps_done).append if rank == 0 else lambda event: None
    if not steps_done:
        log(HeldOutEvaluation(0, *held_out_loss(training, data.held_out)))
    for step in range(steps_done + 1, config.max_steps + 1):
        log(training.step(step))
        if step % config.evaluate_every == 0 or step == config.max_steps:
            evaluation = HeldOutEvaluation(step, *held_out_loss(training, data.held_out))
            log(evaluation)
            checkpoints.save(training, evaluation)
    return data.counts()
