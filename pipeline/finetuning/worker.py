"""What each worker of Ray Train does: load, resume, then train, evaluate and save until `max_steps`.

In: the run. Out: the counts of the data, returned; metrics.jsonl; a checkpoint for each evaluation,
reported to Ray Train. training.py has the model, batches.py the data of a step, worker_checkpoints.py
what is saved.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import ray.train

from pipeline.finetuning.batches import IndexedBatches
from pipeline.finetuning.metrics_log import HeldOutEvaluation
from pipeline.finetuning.reporter import reporting
from pipeline.finetuning.run_folder import RunIdentity
from pipeline.finetuning.streaming import DATASET, StreamedBatches
from pipeline.finetuning.token_store import TokenStore, TokenStoreError
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
            return _train(arguments["run"], arguments["tokens"], stack)
    except (CheckpointError, OutputError, TokenStoreError):
        raise
    except ToolformerError as error:
        return error


def _train(run: RunIdentity, tokens: TokenStore, stack: ExitStack) -> dict[str, int]:
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
    data = tokens.split(config)
    rank = ray.train.get_context().get_world_rank()
    streamed = config.reader == "streamed"
    shard: Any = ray.train.get_dataset_shard(DATASET) if streamed else None
    batches = StreamedBatches(shard) if streamed else IndexedBatches(data.train, config, rank)
    training = Training(
        config, batches, tokenizer, rank=rank, device=get_device(), warmup_steps=run.warmup_steps
    )
    checkpoints = WorkerCheckpoints(config)
    steps_done = checkpoints.resume(training)
    log = stack.enter_context(reporting(config, steps_done, rank))
    if not steps_done:
        log(HeldOutEvaluation(0, *held_out_loss(training, data.held_out)))
    for step in range(steps_done + 1, config.max_steps + 1):
        log(training.step(step))
        if step % config.evaluate_every == 0 or step == config.max_steps:
            evaluation = HeldOutEvaluation(step, *held_out_loss(training, data.held_out))
            log(evaluation)
            checkpoints.save(training, evaluation)
    return data.counts()
