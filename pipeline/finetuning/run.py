"""Step 6: fine-tune M on C* with Ray Train and DeepSpeed (paper section 4.1, Appendix B).

In: the folder that merge wrote and a model. Out, in `config.output`: the best checkpoint by held-out
perplexity as a folder that `AutoModelForCausalLM.from_pretrained` loads, metrics.jsonl and manifest.json.

If a run was killed, the same command resumes it from its last checkpoint, with the examples it
would have seen. If it has finished, nothing is done. run_folder.py tells one run from another,
worker.py is what each worker does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import LoggingConfig

from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.adapters import count_parameters, merge_adapter
from pipeline.finetuning.checkpoints.run_folder import RunFolder
from pipeline.finetuning.checkpoints.run_identity import FinetuneManifest, RunIdentity
from pipeline.finetuning.data.augmented_files import TextIndex, read_index
from pipeline.finetuning.data.examples import choose_uses
from pipeline.finetuning.data.run_size import run_size
from pipeline.finetuning.data.streaming import DATASET, StepsByRank
from pipeline.finetuning.data.token_store import TokenStore
from pipeline.finetuning.data.tokenizing import prepare
from pipeline.finetuning.evaluation.choice import best_of
from pipeline.finetuning.model_card import write_model_card
from pipeline.finetuning.model_files import add_model_files
from pipeline.finetuning.step.deepspeed_checks import require_known_keys, require_machine
from pipeline.finetuning.step.deepspeed_settings import deepspeed_settings, given_file
from pipeline.finetuning.watching.metrics_log import HeldOutEvaluation, steps_done
from pipeline.finetuning.watching.progress import tail
from pipeline.finetuning.watching.trackers import require_installed
from pipeline.finetuning.worker import run_worker
from pipeline.runtime.connection import ray_connection
from pipeline.storage.card import CARD
from pipeline.storage.kinds import FINE_TUNED
from pipeline.storage.lock import exclusive_lock
from pipeline.storage.provenance import versions
from tools_service.base.adapters import model_inputs
from tools_service.base.checkpoints import load_tokenizer
from tools_service.base.errors import ConfigurationError, ToolformerError
from tools_service.base.files import now, writing
from tools_service.base.uris import is_uri
from tools_service.runtime.address import LOCAL, chosen_address
from tools_service.runtime.resources import ProcessRequest, ResourceRequest

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
    _require_separate_folders(config)
    folder = RunFolder(config.output)
    folder.check(force=force)
    check_settings(config)
    index = read_index(config.data)
    choose_uses(index.plain, config)
    run = RunIdentity.of(config)
    if force or not folder.is_finished():
        _check_model(config)
    with exclusive_lock(config.output, FINE_TUNED):
        if folder.claim(run, force=force):
            logger.info("%s: finished before, nothing to do", config.output)
            if not (config.output / CARD).exists():  # killed before it was written
                write_model_card(folder)
        else:
            _run(folder.begun(), folder, index)
    return folder.manifest()


def _run(run: RunIdentity, folder: RunFolder, index: TextIndex) -> None:
    started, config = time.monotonic(), run.config
    parameters = count_parameters(config)
    logger.info(
        "%s: %d of %d parameters are trained (%.2f %%)",
        config.output,
        parameters.trained,
        parameters.total,
        100 * parameters.trained / parameters.total,
    )
    with ray_connection(resource_request([config])):
        store = _tokenise(run, index)
        with tail(folder.metrics, config.max_steps):
            result = _fit(run, store)
    if isinstance(result.return_value, ToolformerError):
        raise result.return_value
    evaluations = [HeldOutEvaluation(**metrics) for _, metrics in result.best_checkpoints]
    best = best_of(evaluations, config.select_by)
    if best is None:
        raise FinetuningError(
            f"{config.output}: no evaluated checkpoint is left in it; start over with --force"
        )
    if (steps := steps_done(folder.metrics)) < config.max_steps:
        logger.info(
            "%s: stopped early at step %d, after %d evaluations without a better %s",
            config.output,
            steps,
            config.patience,
            config.select_by,
        )
    values: dict[str, Any] = {
        "versions": versions(),
        "created": now(),
        "texts": result.return_value,
        "best": best,
        "steps": steps,
        "wall_s": round(time.monotonic() - started, 1),
        "parameters": parameters,
    }
    model = folder.fetch_model(run, best.step)
    if config.lora.merge:
        with writing(folder.merged):
            merge_adapter(model, folder.merged, config.model.dtype)
        model = folder.merged
    add_model_files(model, config)
    folder.publish(model, run, values)
    write_model_card(folder)


def resource_request(configs: Sequence[FinetuneConfig]) -> ResourceRequest:
    """The workers of `configs`, which train at the same time."""
    workers = (
        ProcessRequest(
            of="training worker",
            count=config.workers,
            cpus=config.cpus_per_worker,
            gpus=int(config.use_gpu),
            fewer_cpus="lower cpus_per_worker",
            fewer_gpus="train on the CPU (use_gpu false)",
            fewer="lower --workers",
        )
        for config in configs
    )
    return ResourceRequest(processes=tuple(workers), wait_s=configs[0].wait_s, wait_option="wait_s")


def _tokenise(run: RunIdentity, index: TextIndex) -> TokenStore:
    """The tokens of C*, made unless they are there; the size of the run is logged."""
    config = run.config
    store = prepare(config, load_tokenizer(config.model.path, "model.path"), run.data, index)
    for name, text in run_size(config, index, store.split(config).train).lines():
        logger.info("%s: %s: %s", config.output, name, text)
    return store


def with_absolute_paths(config: FinetuneConfig) -> FinetuneConfig:
    """Workers run in another working folder."""
    model = config.model
    if Path(model.path).is_dir():
        model = model.model_copy(update={"path": str(_absolute("model.path", Path(model.path)))})
    paths: dict[str, Any] = {"model": model}
    for name in ("data", "output", "deepspeed", "tokens"):
        path = getattr(config, name)
        if path and name == "deepspeed":
            path = given_file(path)
        paths[name] = path and _absolute(name, path)
    if config.storage is not None and not is_uri(config.storage):
        paths["storage"] = str(_absolute("storage", Path(config.storage)))
    return config.model_copy(update=paths)


def _absolute(name: str, path: Path) -> Path:
    try:
        str(path).encode()  # manifests hold it
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigurationError(f"{name} = {str(path)!r} is not a path: {error}") from error


def _require_separate_folders(config: FinetuneConfig) -> None:
    models = [("model.path", Path(name)) for name in model_inputs(config.model.path)]
    for name, path in (*models, ("data", config.data), ("tokens", config.tokens)):
        if path and path.is_relative_to(config.output):
            raise ConfigurationError(f"output = {config.output} holds {name} = {path}: choose another folder")
    storage = Path(config.storage) if config.storage and not is_uri(config.storage) else None
    for name, path in (("tokens", config.tokens), ("storage", storage)):
        if path and path.is_relative_to(config.data):
            raise ConfigurationError(f"data = {config.data} holds {name} = {path}: choose another folder")
        if path and path.exists() and not path.is_dir():
            raise ConfigurationError(f"{name} = {path} is a file: name a folder")


def check_settings(config: FinetuneConfig) -> None:
    """Raise ConfigurationError for settings that contradict one another or lack something on this machine,
    which would otherwise fail minutes later, on the workers. `config` has absolute paths."""
    _require_separate_folders(config)
    deepspeed_settings(config)
    require_known_keys(config)
    if not ray.is_initialized() and chosen_address(None, "ray.address")[0] == LOCAL:
        require_machine(config)  # elsewhere the workers look at their own machines
    require_installed(config)


def _check_model(config: FinetuneConfig) -> None:
    """Raise an error for a model or a tokenizer that cannot be trained, before workers start."""
    from transformers import AutoModelForCausalLM

    from pipeline.engine.limits import max_positions, position_embeddings
    from pipeline.engine.loading import require_model
    from tools_service.base.checkpoints import load_config, require_whole

    path = config.model.path
    require_model(config.model)
    model_config = load_config(path, "model.path")
    positions = position_embeddings(model_config)
    if config.sequence_length > positions:
        raise ConfigurationError(
            f"sequence_length = {config.sequence_length} is more than the {positions} positions of {path}"
        )
    if config.packing and config.sequence_length > (window := max_positions(model_config)):
        raise ConfigurationError(
            f"packing: a token of {path} sees at most {window} tokens, which is less than sequence_length = "
            f"{config.sequence_length}: lower sequence_length, or set packing to false"
        )
    if Path(path).is_dir():  # the workers look at a model of the hub
        require_whole(AutoModelForCausalLM, path, "model.path")
    count_parameters(config)


def _fit(run: RunIdentity, store: TokenStore) -> Any:
    """The ray.train.Result. (mypy reads the signatures of Ray Train's first version.)"""
    config, storage = run.config, run.storage
    streamed = config.reader == "streamed"
    trainer = TorchTrainer(
        run_worker,  # type: ignore[arg-type]
        train_loop_config={"run": run, "tokens": store},
        datasets={DATASET: ray.data.range(1)} if streamed else None,  # StepsByRank has the data
        dataset_config=StepsByRank(config, store) if streamed else None,
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker} | ({"GPU": 1} if config.use_gpu else {}),
        ),
        # With the same name and path, Ray Train resumes from the checkpoints it finds there. Workers
        # remove old ones: Ray Train itself would keep the best, not the latest.
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]
            name=storage.name,
            storage_path=storage.parent,
            storage_filesystem=storage.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
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
