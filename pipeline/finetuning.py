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

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.report_config import CheckpointUploadMode

from pipeline.config import FinetuneConfig
from pipeline.errors import ConfigurationError, PipelineError
from pipeline.examples import count_texts, digest, load_examples
from pipeline.journal import Evaluation, Journal, following, read_evaluations

if TYPE_CHECKING:
    from pipeline.training import Training

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
# What may differ between two starts of the same run: the result does not depend on it.
_FREE = {"output", "data", "cpus_per_worker", "max_failures", "gradient_checkpointing"}


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
    error: PipelineError | None = None


def finetune(config: FinetuneConfig, *, force: bool = False) -> FinetuneResult:
    """Train, or go on training, or find that it is done. `force` starts over.

    Raises ConfigurationError before anything runs, NonFiniteLossError, and FinetuningError when workers fail
    more than `max_failures` times.
    """
    config = _absolute(config)
    _check(config)
    identity = {"config": config.model_dump(mode="json", exclude=_FREE), "data": digest(config.data)}
    if force:
        _clear(config.output)
    if (config.output / MANIFEST).exists():
        _same(config.output, config.output / MANIFEST, identity)
        logger.info("%s: finished before, nothing to do", config.output)
        return _result(config.output, reused=True)
    _begin(config.output, identity)
    started = time.monotonic()
    with _cluster(config), following(config.output / METRICS, config.max_steps):
        result = _fit(config)
    outcome: Outcome = result.return_value
    if outcome.error:
        raise outcome.error
    _publish(
        config, result, identity | {"texts": outcome.counts, "wall_s": round(time.monotonic() - started, 1)}
    )
    return _result(config.output, reused=False)


class FinetuningError(PipelineError):
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
    try:
        model = AutoConfig.from_pretrained(config.model.path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"model.path = {config.model.path}: {error}") from error
    context = getattr(model, "max_position_embeddings", None)
    if context and config.sequence_length > context:
        raise ConfigurationError(
            f"sequence_length = {config.sequence_length} is more than the {context} of {config.model.path}"
        )


def _begin(output: Path, identity: dict[str, Any]) -> None:
    """Claim the folder, or find that this very run was begun in it."""
    begun = output / CHECKPOINTS / "run.json"
    if begun.exists():
        _same(output, begun, identity)
        logger.info("%s: going on with the run begun there", output)
        return
    if output.exists() and any(output.iterdir()):
        raise ConfigurationError(f"{output} is not empty, and not a run of finetune: choose another output")
    begun.parent.mkdir(parents=True)
    _write(begun, identity)


def _same(output: Path, recorded: Path, identity: dict[str, Any]) -> None:
    """Refuse to mix two runs in one folder, naming what differs."""
    try:
        before = json.loads(recorded.read_text(encoding="utf-8"))
        old, new = _flat(before["config"]), _flat(identity["config"])
        changed = [
            f"{name}: {old.get(name)} → {new.get(name)}"
            for name in old | new
            if old.get(name) != new.get(name)
        ]
        if before["data"] != identity["data"]:
            changed.append("data: other content")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{recorded} is damaged ({error}): start over with --force") from error
    if changed:
        raise ConfigurationError(
            f"{output} holds a run with other settings ({', '.join(changed)}): "
            "start over with --force, or choose another output"
        )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Names with dots, as on the command line."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        nested = (
            {f"{name}.{key}": inner for key, inner in _flat(value).items()} if isinstance(value, dict) else {}
        )
        flat |= nested or {name: value}
    return flat


def _clear(output: Path) -> None:
    """Remove a run, finished or not; leave a folder that is none to `_begin`."""
    if (output / MANIFEST).exists() or (output / CHECKPOINTS / "run.json").exists():
        shutil.rmtree(output)


@contextmanager
def _cluster(config: FinetuneConfig) -> Iterator[None]:
    """The cluster this process is connected to, or RAY_ADDRESS names, or a local one for this run only."""
    needed = config.workers * config.cpus_per_worker
    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS") or "local"
        cpus = max(os.cpu_count() or 1, needed) if address == "local" else None
        ray.init(address=address, num_cpus=cpus, log_to_driver=False, logging_level=logging.WARNING)
    try:
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = config.workers if config.use_gpu else 0
        if resources.get("CPU", 0) < needed or resources.get("GPU", 0) < gpus:
            logger.warning(
                "%d workers need %d CPUs and %d GPUs; the cluster has %d and %d: waiting until it has grown",
                config.workers,
                needed,
                gpus,
                resources.get("CPU", 0),
                resources.get("GPU", 0),
            )
        yield
    finally:
        if started:
            ray.shutdown()


def _fit(config: FinetuneConfig) -> Any:
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
            name=CHECKPOINTS,
            storage_path=str(config.output),
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
    except PipelineError as error:
        return Outcome({}, error)


def _train(config: FinetuneConfig) -> dict[str, int]:
    """The loop: from the last checkpoint, if there is one, to `max_steps`."""
    import torch
    from ray.train.torch import get_device

    from pipeline.training import Training, load_tokenizer, prepare_deepspeed

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
    journal = Journal(config.output / METRICS, done) if rank == 0 else None
    if not done:
        evaluation = Evaluation(0, *training.evaluate())
        if journal:
            journal.evaluation(evaluation)
    for step in range(done + 1, config.max_steps + 1):
        rate = training.learning_rate
        loss = training.step(step)
        if journal:
            journal.step(step, loss, rate)
        if step % config.evaluate_every == 0 or step == config.max_steps:
            evaluation = Evaluation(step, *training.evaluate())
            if journal:
                journal.evaluation(evaluation)
            _report(training, evaluation, config.output / CHECKPOINTS / f"step-{step:06d}")
    return data.counts()


def _report(training: Training, evaluation: Evaluation, folder: Path) -> None:
    """Write a checkpoint in its place on the shared storage, and tell Ray Train (every worker must)."""
    training.save(folder, evaluation.step)
    ray.train.report(
        asdict(evaluation),
        checkpoint=ray.train.Checkpoint.from_directory(folder),
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
    )


def _publish(config: FinetuneConfig, result: Any, manifest: dict[str, Any]) -> None:
    """The best checkpoint's model becomes the result; the manifest, written last, says that it is whole."""
    checkpoint, best = min(
        result.best_checkpoints or [], key=lambda found: (found[1]["held_out_loss"], found[1]["step"])
    )
    shutil.copytree(Path(checkpoint.path) / "model", config.output, dirs_exist_ok=True)
    packages = ("torch", "transformers", "deepspeed", "ray")
    manifest |= {"best": best, "versions": {name: version(name) for name in packages}}
    _write(config.output / MANIFEST, manifest)
    shutil.rmtree(config.output / CHECKPOINTS)


def _result(output: Path, *, reused: bool) -> FinetuneResult:
    manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
    return FinetuneResult(output, Evaluation(**manifest["best"]), read_evaluations(output / METRICS), reused)


def _write(path: Path, content: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
