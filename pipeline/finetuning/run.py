"""Step 6: fine-tune M on C* with Ray Train and DeepSpeed (paper section 4.1, Appendix B).

In: the folder that merge wrote and a model. Out, in `config.output`: the best checkpoint by held-out
perplexity as a folder that `AutoModelForCausalLM.from_pretrained` loads, metrics.jsonl (loss of every step,
every perplexity) and manifest.json.

A run that was killed goes on from its last checkpoint when it is started again, with the examples it would
have seen; one that has finished is left alone. Both only if configuration and data are the same. This
module starts, watches and finishes the run; the examples are examples.py's, the arithmetic is
training.py's.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.report_config import CheckpointUploadMode

from pipeline.base.config import FinetuneConfig
from pipeline.finetuning.examples import count_texts, digest, load_examples
from pipeline.finetuning.metrics_log import Evaluation, MetricsLog, read_evaluations, tail
from pipeline.finetuning.run_folder import FinetuneManifest, Run, RunFolder
from pipeline.runtime.connection import ResourceRequest, ray_connection
from pipeline.storage.lock import exclusive_lock
from pipeline.storage.provenance import versions
from tools_service.base.errors import ConfigurationError, ToolformerError
from tools_service.base.files import now

if TYPE_CHECKING:
    from pipeline.finetuning.training import Training

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """What a run left. Losses in nats per token."""

    output: Path
    best: Evaluation
    evaluations: tuple[Evaluation, ...]
    reused: bool
    """The run had finished before; nothing was done now."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the first worker returns: its counts, or why every worker stopped."""

    counts: dict[str, int]
    error: ToolformerError | None = None


def finetune(config: FinetuneConfig, *, force: bool = False) -> FinetuneResult:
    """Train, or go on training, or find that it is done. `force` starts over.

    Raises ConfigurationError before anything runs, NonFiniteLossError, and FinetuningError when workers fail
    more than `max_failures` times.
    """
    config = _absolute(config)
    _check(config)
    folder, run = RunFolder(config.output), Run(recipe=config, data=digest(config.data))
    folder.check()
    with exclusive_lock(config.output):
        reused = folder.claim(run, force=force)
        if reused:
            logger.info("%s: finished before, nothing to do", config.output)
        else:
            _run(config, folder, run)
    return FinetuneResult(config.output, folder.manifest().best, read_evaluations(folder.metrics), reused)


def _run(config: FinetuneConfig, folder: RunFolder, run: Run) -> None:
    started = time.monotonic()
    with ray_connection(needs(config)), tail(folder.metrics, config.max_steps):
        result = _fit(config, folder)
    outcome: Outcome = result.return_value
    if outcome.error:
        raise outcome.error
    found = [(Evaluation(**metrics), Path(kept.path)) for kept, metrics in result.best_checkpoints]
    best, checkpoint = min(found, key=lambda found: (found[0].held_out_loss, found[0].step))
    manifest = FinetuneManifest(
        recipe=config,
        data=run.data,
        versions=versions(),
        created=now(),
        texts=outcome.counts,
        best=best,
        wall_s=round(time.monotonic() - started, 1),
    )
    folder.publish(checkpoint / "model", manifest)


class FinetuningError(ToolformerError):
    """Workers failed more often than `max_failures`."""


def _absolute(config: FinetuneConfig) -> FinetuneConfig:
    """Workers have a working folder of their own."""
    local = Path(config.model.path)
    model = config.model.model_copy(update={"path": str(local.resolve())}) if local.is_dir() else config.model
    paths: dict[str, Any] = {"model": model, "data": config.data.resolve(), "output": config.output.resolve()}
    if config.deepspeed:
        paths["deepspeed"] = config.deepspeed.resolve()
    return config.model_copy(update=paths)


def _check(config: FinetuneConfig) -> None:
    """What would otherwise fail minutes later, on the workers."""
    from transformers import AutoConfig

    texts = count_texts(config.data)
    if texts < config.held_out + config.batch_size:
        raise ConfigurationError(
            f"{config.data}: {texts} texts are not enough for held_out = {config.held_out} and one batch of "
            f"batch_size = {config.batch_size}: lower one of them, or merge more annotations"
        )
    for name, needed in (("model.path", Path(config.model.path)), ("data", config.data)):
        if needed.is_relative_to(config.output):
            raise ConfigurationError(
                f"output = {config.output} holds {name} = {needed}: choose another folder"
            )
    try:
        model = AutoConfig.from_pretrained(config.model.path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"model.path = {config.model.path}: {error}") from error
    context = getattr(model, "max_position_embeddings", None)
    if context and config.sequence_length > context:
        raise ConfigurationError(
            f"sequence_length = {config.sequence_length} is more than the {context} of {config.model.path}"
        )


def needs(config: FinetuneConfig) -> ResourceRequest:
    """What the workers need at once."""
    return ResourceRequest(
        cpus=config.workers * config.cpus_per_worker,
        gpus=config.workers if config.use_gpu else 0,
        of=f"{config.workers} workers",
        remedy="set use_gpu to false, lower workers, or name a cluster in the variable RAY_ADDRESS",
    )


def _fit(config: FinetuneConfig, folder: RunFolder) -> Any:
    """The ray.train.Result. (mypy reads the signatures of Ray Train's first version.)"""
    trainer = TorchTrainer(
        _work,  # type: ignore[arg-type]
        train_loop_config={"config": config},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker} | ({"GPU": 1} if config.use_gpu else {}),
        ),
        # The same name and path again: Ray Train goes on from the checkpoints it finds there.
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]
            name=folder.checkpoints.name,
            storage_path=str(folder.path),
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="held_out_loss", checkpoint_score_order="min"
            ),  # the best one; the latest is kept besides
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        return trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise FinetuningError(
            f"workers failed, and max_failures = {config.max_failures} is used up. Another start goes on "
            f"from the last checkpoint in {config.output}. {error}"
        ) from error


def _work(arguments: dict[str, Any]) -> Outcome:
    """On every worker. An error of ours is the same on all of them: it is returned, not tried again."""
    try:
        return Outcome(_train(arguments["config"]))
    except ToolformerError as error:
        return Outcome({}, error)


def _train(config: FinetuneConfig) -> dict[str, int]:
    """The loop: from the last checkpoint, if there is one, to `max_steps`."""
    import torch
    from ray.train.torch import get_device

    from pipeline.finetuning.training import Training, load_tokenizer, prepare_deepspeed

    prepare_deepspeed(config.use_gpu)
    torch.set_num_threads(config.cpus_per_worker)
    tokenizer = load_tokenizer(config)
    data = load_examples(
        config.data,
        config.column,
        tokenizer,
        sequence_length=config.sequence_length,
        held_out=config.held_out,
        seed=config.seed,
    )
    rank = ray.train.get_context().get_world_rank()
    training = Training(config, data, tokenizer, rank=rank, device=get_device())
    checkpoint = ray.train.get_checkpoint()
    done = training.restore(Path(checkpoint.path)) if checkpoint else 0
    folder = RunFolder(config.output)
    journal = MetricsLog(folder.metrics, done) if rank == 0 else None
    if not done:
        evaluation = Evaluation(0, *training.evaluate())
        if journal:
            journal.evaluation(evaluation)
    for step in range(done + 1, config.max_steps + 1):
        taken = training.step(step)
        if journal:
            journal.step(taken)
        if step % config.evaluate_every == 0 or step == config.max_steps:
            evaluation = Evaluation(step, *training.evaluate())
            if journal:
                journal.evaluation(evaluation)
            _report(training, evaluation, folder.checkpoints / f"step-{step:06d}")
    return data.counts()


def _report(training: Training, evaluation: Evaluation, folder: Path) -> None:
    """Write a checkpoint in its place on the shared storage, and tell Ray Train (every worker must)."""
    training.save(folder, evaluation.step)
    ray.train.report(
        asdict(evaluation),
        checkpoint=ray.train.Checkpoint.from_directory(folder),
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
    )
