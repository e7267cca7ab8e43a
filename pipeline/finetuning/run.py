"""Step 6: fine-tune M on C* with Ray Train and DeepSpeed (paper section 4.1, Appendix B).

In: the folder that merge wrote and a model. Out, in `config.output`: the best checkpoint (choice.py)
as a folder that `AutoModelForCausalLM.from_pretrained` loads, metrics.jsonl and manifest.json.

If a run was killed, the same command resumes it from its last checkpoint, with the examples it
would have seen. If it has finished, nothing is done. run_folder.py tells one run from another,
worker.py is what each worker does.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import LoggingConfig

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.choice import SCORES, best_of
from pipeline.finetuning.examples import count_examples
from pipeline.finetuning.metrics_log import HeldOutEvaluation, steps_done, tail
from pipeline.finetuning.run_folder import FinetuneManifest, RunFolder, RunIdentity
from pipeline.finetuning.worker import run_worker
from pipeline.runtime.connection import ResourceRequest, ray_connection
from pipeline.storage.kinds import FINE_TUNED
from pipeline.storage.lock import exclusive_lock
from pipeline.storage.provenance import versions
from tools_service.base.errors import ConfigurationError, ToolformerError
from tools_service.base.files import now

logger = logging.getLogger(__name__)

_MAX_CAUSE = 400  # characters of a worker's message; the end of a traceback says what happened


class FinetuningError(ToolformerError):
    """Workers failed more often than `max_failures`."""


def finetune(config: FinetuneConfig, *, force: bool = False) -> FinetuneManifest:
    """Train or resume training, unless the run has finished. `force` starts over.

    Raises ConfigurationError before anything runs, NonFiniteLossError, DivergedError, and
    FinetuningError when workers fail more than `max_failures` times.
    """
    config = with_absolute_paths(config)
    for name, path in (("model.path", Path(config.model.path)), ("data", config.data)):
        if path.is_relative_to(config.output):
            raise ConfigurationError(f"output = {config.output} holds {name} = {path}: choose another folder")
    folder = RunFolder(config.output)
    folder.check(force=force)
    texts = _check(config)
    run = RunIdentity.of(config)
    if force or not folder.is_finished():
        _check_model(config)
    with exclusive_lock(config.output, FINE_TUNED):
        if folder.claim(run, force=force):
            logger.info("%s: finished before, nothing to do", config.output)
        else:
            _run(config, folder, run, texts)
    return folder.manifest()


def _run(config: FinetuneConfig, folder: RunFolder, run: RunIdentity, texts: dict[str, int]) -> None:
    started = time.monotonic()
    resources = ResourceRequest(
        cpus=config.workers * config.cpus_per_worker,
        gpus=config.workers if config.use_gpu else 0,
        of=f"{config.workers} workers",
        remedy="set use_gpu to false, lower workers, or name a cluster in the variable RAY_ADDRESS",
    )
    logger.info(
        "%s: %d texts to train on, %d held out, %d equal to those; %d steps of %d texts are %.2f epochs",
        config.output,
        texts["trained_on"],
        texts["held_out"],
        texts["equal_to_held_out"],
        config.max_steps,
        config.batch_size,
        config.max_steps * config.batch_size / texts["trained_on"],
    )
    with ray_connection(resources), tail(folder.metrics, config.max_steps):
        result = _fit(config, folder)
    if isinstance(result.return_value, ToolformerError):
        raise result.return_value
    evaluated = [(HeldOutEvaluation(**metrics), kept.path) for kept, metrics in result.best_checkpoints]
    best = best_of((evaluation for evaluation, _ in evaluated), config.select_by)
    if best is None:
        raise FinetuningError(
            f"{config.output}: no evaluated checkpoint is left in it; start over with --force"
        )
    checkpoint = next(path for evaluation, path in evaluated if evaluation == best)
    if (steps := steps_done(folder.metrics)) < config.max_steps:
        logger.info(
            "stopped early at step %d: no better %s in the last %d evaluations",
            steps,
            config.select_by,
            config.patience,
        )
    values: dict[str, Any] = {
        "versions": versions(),
        "created": now(),
        "texts": result.return_value,
        "best": best,
        "steps": steps,
        "wall_s": round(time.monotonic() - started, 1),
    }
    folder.publish(Path(checkpoint) / "model", run, values)


def with_absolute_paths(config: FinetuneConfig) -> FinetuneConfig:
    """Workers run in another working folder."""
    model = config.model
    if Path(model.path).is_dir():
        model = model.model_copy(update={"path": str(_absolute("model.path", Path(model.path)))})
    paths: dict[str, Any] = {"model": model}
    for name in ("data", "output", "deepspeed"):
        path = getattr(config, name)
        paths[name] = path and _absolute(name, path)
    return config.model_copy(update=paths)


def _absolute(name: str, path: Path) -> Path:
    try:
        str(path).encode()  # manifests hold it
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigurationError(f"{name} = {str(path)!r} is not a path: {error}") from error


def _check(config: FinetuneConfig) -> dict[str, int]:
    """The number of texts by use. Raises ConfigurationError for settings that contradict one another
    or the data, which would otherwise fail minutes later, on the workers."""
    from pipeline.finetuning.deepspeed_settings import deepspeed_settings, require_known_keys

    deepspeed_settings(config)
    require_known_keys(config)
    return count_examples(config)


def _check_model(config: FinetuneConfig) -> None:
    """Raise an error for a model or a tokenizer that cannot be trained, before workers start."""
    from transformers import AutoModelForCausalLM

    from pipeline.engine.limits import position_embeddings
    from pipeline.engine.loading import require_model
    from tools_service.base.checkpoints import load_config, require_whole

    path = config.model.path
    require_model(config.model)
    positions = position_embeddings(load_config(path, "model.path"))
    if config.sequence_length > positions:
        raise ConfigurationError(
            f"sequence_length = {config.sequence_length} is more than the {positions} positions of {path}"
        )
    if Path(path).is_dir():  # the workers look at a model of the hub
        require_whole(AutoModelForCausalLM, path, "model.path")


def _fit(config: FinetuneConfig, folder: RunFolder) -> Any:
    """The ray.train.Result. (mypy reads the signatures of Ray Train's first version.)"""
    trainer = TorchTrainer(
        run_worker,  # type: ignore[arg-type]
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
                num_to_keep=1,
                checkpoint_score_attribute=SCORES[config.select_by],
                checkpoint_score_order="min",
            ),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        return trainer.fit()
    except ray.train.TrainingFailedError as error:
        wrapped = list(getattr(error, "worker_failures", {}).values())
        failures = [getattr(failure, "_base_exc", failure) for failure in wrapped]
        for failure in failures:
            if isinstance(failure, ToolformerError):
                raise failure from error
        logger.debug("workers failed", exc_info=error)
        cause = " ".join(str(failures[0] if failures else error).split())
        raise FinetuningError(
            f"workers failed more often than max_failures = {config.max_failures}. The same command resumes "
            f"from the last checkpoint in {config.output}. The last failure: {cause[-_MAX_CAUSE:]}"
        ) from error
