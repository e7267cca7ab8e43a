"""Step 6: fine-tune M on C* with Ray Train and DeepSpeed (paper section 4.1, Appendix B).

In: the folder that merge wrote and a model. Out, in `config.output`: the best checkpoint by held-out
perplexity as a folder that `AutoModelForCausalLM.from_pretrained` loads, metrics.jsonl and manifest.json.

If a run was killed, the same command resumes it from its last checkpoint, with the examples it
would have seen. If it has finished, nothing is done. run_folder.py tells one run from another,
examples.py prepares the data, training.py trains.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.report_config import CheckpointUploadMode

from pipeline.base.config import FinetuneConfig
from pipeline.finetuning.examples import count_texts, digest, load_examples
from pipeline.finetuning.metrics_log import HeldOutEvaluation, MetricsLog, tail
from pipeline.finetuning.run_folder import FinetuneManifest, RunFolder, RunIdentity
from pipeline.runtime.connection import ResourceRequest, ray_connection
from pipeline.storage.lock import exclusive_lock
from pipeline.storage.provenance import versions
from tools_service.base.errors import ConfigurationError, ToolformerError
from tools_service.base.files import now

logger = logging.getLogger(__name__)


class FinetuningError(ToolformerError):
    """Workers failed more often than `max_failures`."""


def finetune(config: FinetuneConfig, *, force: bool = False) -> FinetuneManifest:
    """Train or resume training, unless the run has finished. `force` starts over.

    Raises ConfigurationError before anything runs, NonFiniteLossError, DivergedError, and
    FinetuningError when workers fail more than `max_failures` times.
    """
    config = _with_absolute_paths(config)
    _check(config)
    folder, run = RunFolder(config.output), RunIdentity(config=config, data=digest(config.data))
    folder.check()
    with exclusive_lock(config.output):
        if folder.claim(run, force=force):
            logger.info("%s: finished before, nothing to do", config.output)
        else:
            _run(config, folder, run)
    return folder.manifest()


def _run(config: FinetuneConfig, folder: RunFolder, run: RunIdentity) -> None:
    started = time.monotonic()
    resources = ResourceRequest(
        cpus=config.workers * config.cpus_per_worker,
        gpus=config.workers if config.use_gpu else 0,
        of=f"{config.workers} workers",
        remedy="set use_gpu to false, lower workers, or name a cluster in the variable RAY_ADDRESS",
    )
    with ray_connection(resources), tail(folder.metrics, config.max_steps):
        result = _fit(config, folder)
    if isinstance(result.return_value, ToolformerError):
        raise result.return_value
    evaluated = [(HeldOutEvaluation(**metrics), kept.path) for kept, metrics in result.best_checkpoints]
    best, checkpoint = min(evaluated, key=lambda pair: (pair[0].held_out_loss, pair[0].step))
    manifest = FinetuneManifest(
        config=config,
        data=run.data,
        versions=versions(),
        created=now(),
        texts=result.return_value,
        best=best,
        wall_s=round(time.monotonic() - started, 1),
    )
    folder.publish(Path(checkpoint) / "model", manifest)


def _with_absolute_paths(config: FinetuneConfig) -> FinetuneConfig:
    """Workers run in another working folder."""
    local = Path(config.model.path)
    model = config.model.model_copy(update={"path": str(local.resolve())}) if local.is_dir() else config.model
    paths: dict[str, Any] = {"model": model, "data": config.data.resolve(), "output": config.output.resolve()}
    paths["deepspeed"] = config.deepspeed and config.deepspeed.resolve()
    return config.model_copy(update=paths)


def _check(config: FinetuneConfig) -> None:
    """Raise ConfigurationError for what would otherwise fail minutes later, on the workers."""
    from tools_service.base.checkpoints import load_config

    texts = count_texts(config.data)
    if texts < config.held_out + config.batch_size:
        raise ConfigurationError(
            f"{config.data}: {texts} texts are not enough for held_out = {config.held_out} and one batch of "
            f"batch_size = {config.batch_size}: lower one of them, or merge more annotations"
        )
    for name, path in (("model.path", Path(config.model.path)), ("data", config.data)):
        if path.is_relative_to(config.output):
            raise ConfigurationError(f"output = {config.output} holds {name} = {path}: choose another folder")
    model = load_config(config.model.path, "model.path")
    context = getattr(model, "max_position_embeddings", None)
    if context and config.sequence_length > context:
        raise ConfigurationError(
            f"sequence_length = {config.sequence_length} is more than the {context} of {config.model.path}"
        )


def _fit(config: FinetuneConfig, folder: RunFolder) -> Any:
    """The ray.train.Result. (mypy reads the signatures of Ray Train's first version.)"""
    trainer = TorchTrainer(
        _worker,  # type: ignore[arg-type]
        train_loop_config={"config": config},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker} | ({"GPU": 1} if config.use_gpu else {}),
        ),
        # With the same name and path, Ray Train resumes from the checkpoints it finds there.
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]
            name=folder.checkpoints.name,
            storage_path=str(folder.path),
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            # Ray Train keeps the best checkpoint and, in addition, the latest.
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="held_out_loss", checkpoint_score_order="min"
            ),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        return trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise FinetuningError(
            f"workers failed more often than max_failures = {config.max_failures}. The same command resumes "
            f"from the last checkpoint in {config.output}. {error}"
        ) from error


def _worker(arguments: dict[str, Any]) -> dict[str, int] | ToolformerError:
    """Runs on every worker; returns the counts of the data.

    Our own errors occur on all workers alike, so they are returned: another try would fail again.
    An error while loading a checkpoint may concern one node only. It is raised, and Ray Train
    restarts all workers.
    """
    from pipeline.finetuning.training import CheckpointError

    try:
        return _train(arguments["config"])
    except CheckpointError:
        raise
    except ToolformerError as error:
        return error


def _train(config: FinetuneConfig) -> dict[str, int]:
    """The training loop: from the last checkpoint, if there is one, to `max_steps`."""
    import torch
    from ray.train.torch import get_device

    from pipeline.finetuning.training import CheckpointError, Training, prepare_deepspeed
    from tools_service.base.checkpoints import load_tokenizer

    prepare_deepspeed(config.use_gpu)
    torch.set_num_threads(config.cpus_per_worker)
    tokenizer = load_tokenizer(config.model.path, "model.path", CheckpointError)
    data = load_examples(config, tokenizer)
    rank = ray.train.get_context().get_world_rank()
    training = Training(config, data, tokenizer, rank=rank, device=get_device())
    checkpoint = ray.train.get_checkpoint()
    steps_done = training.restore(Path(checkpoint.path)) if checkpoint else 0
    folder = RunFolder(config.output)
    # Only the first worker writes the metrics.
    log = MetricsLog(folder.metrics, steps_done).append if rank == 0 else lambda event: None
    if not steps_done:
        log(HeldOutEvaluation(0, *training.evaluate()))
    for step in range(steps_done + 1, config.max_steps + 1):
        log(training.step(step))
        if step % config.evaluate_every == 0 or step == config.max_steps:
            evaluation = HeldOutEvaluation(step, *training.evaluate())
            log(evaluation)
            checkpoint_folder = folder.checkpoints / f"step-{step:06d}"
            training.save(checkpoint_folder, step)
            ray.train.report(
                asdict(evaluation),
                checkpoint=ray.train.Checkpoint.from_directory(checkpoint_folder),
                checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
            )
    return data.counts()
