"""What each worker of Ray Train does: load, resume, then train, evaluate and save until `max_steps`, or
until `patience` evaluations in a row were no better.

In: the run. Out: the counts of the data, returned; metrics.jsonl; a checkpoint for each evaluation,
reported to Ray Train. training.py has the model, batches.py the data of a step, worker_checkpoints.py
what is saved.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray.train

from pipeline.finetuning.checkpoints.run_folder import RunFolder
from pipeline.finetuning.checkpoints.run_identity import RunIdentity
from pipeline.finetuning.data.batches import IndexedBatches
from pipeline.finetuning.data.streaming import DATASET, StreamedBatches
from pipeline.finetuning.data.token_store import TokenStore, TokenStoreError
from pipeline.finetuning.evaluation.choice import should_stop
from pipeline.finetuning.watching.metrics_log import HeldOutEvaluation, evaluations
from pipeline.finetuning.watching.reporter import reporting
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
    """The training loop: from the last checkpoint, if there is one, to `max_steps` or an early stop."""
    import torch
    from ray.train.torch import get_device

    from pipeline.finetuning.checkpoints.worker_checkpoints import WorkerCheckpoints
    from pipeline.finetuning.errors import CheckpointError
    from pipeline.finetuning.evaluation.held_out import Evaluator
    from pipeline.finetuning.step.accelerator import prepare_deepspeed
    from pipeline.finetuning.step.training import Training
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
    metrics = RunFolder(config.output).metrics
    log = stack.enter_context(reporting(config, metrics, steps_done, rank))
    evaluator = Evaluator(training, data.held_out)

    def evaluate(step: int) -> HeldOutEvaluation:
        evaluation, probe = evaluator.evaluate(step)
        if probe is not None:
            log(probe)
        log(evaluation)
        return evaluation

    evaluated = evaluations_so_far(metrics, steps_done)
    if not steps_done:
        evaluate(0)
    for step in range(steps_done + 1, config.max_steps + 1):
        if should_stop(evaluated, config):
            break
        log(training.step(step))
        if step % config.evaluate_every == 0 or step == config.max_steps:
            evaluated.append(evaluate(step))
            checkpoints.save(training, evaluated[-1])
    return data.counts()


def evaluations_so_far(metrics: Path, steps: int) -> list[HeldOutEvaluation]:
    """The evaluations up to `steps`, as the first worker reads them, so that all decide alike."""
    import torch.distributed as dist

    read: list[Any] = [evaluations(metrics, steps) if dist.get_rank() == 0 and steps else []]
    dist.broadcast_object_list(read, src=0)
    found: list[HeldOutEvaluation] = read[0]
    return found
