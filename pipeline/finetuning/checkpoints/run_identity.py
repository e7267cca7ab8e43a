"""Which run a fine-tuning is: what decides its result, and what may change between two starts of it.

In: the configuration, the data, the model and the DeepSpeed file. Out: `RunIdentity`, which run.json holds
while the run is unfinished, and `FinetuneManifest` at its end; the differences between two of them, in words.
Contents are compared, not file times.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import model_validator

from pipeline.base.config import changed_fields
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.adapters import ParameterCounts
from pipeline.finetuning.checkpoints.checkpoint_storage import CheckpointStorage
from pipeline.finetuning.data.augmented_files import digest
from pipeline.finetuning.step.schedule import warmup_steps
from pipeline.finetuning.watching.metrics_log import HeldOutEvaluation
from tools_service.base.adapters import model_inputs
from tools_service.base.errors import ConfigurationError, brief
from tools_service.base.files import read_json, read_model
from tools_service.base.fingerprint import FileState, fingerprint
from tools_service.base.settings import Frozen
from tools_service.base.weights import model_digest

_CPU_OPTIMIZER = "zero_force_ds_cpu_optimizer"
# Fields that may differ between two starts of one run: the result does not depend on them.
_OPERATIONAL: dict[str, Any] = {
    "output": True,
    "data": True,
    "reader": True,
    "tokens": True,
    "cpus_per_worker": True,
    "wait_s": True,
    "max_failures": True,
    "gradient_checkpointing": True,
    "probe_prompts": True,
    "probe_tokens": True,
    "keep_checkpoints": True,
    "keep_state": True,
    "workers": True,  # a batch is divided otherwise, its loss is the same
    "micro_batch_size": True,
    "trackers": True,
    "project": True,
    "model": {"device", "max_batch_tokens", "gpus", "compile"},
}


class RunIdentity(Frozen):
    """checkpoints/run.json: everything that decides the result."""

    RENAMED = {"recipe": "config"}  # noqa: RUF012

    config: FinetuneConfig
    data: str  # digest of the content of C*
    model: str | None = None  # digest of the model's files, or the commit on the hub
    deepspeed: str | None = None  # digest of the settings in `config.deepspeed`
    # Earlier versions knew the last two by their paths only: None there.
    warmup_steps: int | None = None  # as they were at the first start, whatever max_steps is now
    checkpoint_folder: str = "checkpoints"  # the run's folder in `config.storage`

    @model_validator(mode="before")
    @classmethod
    def _criterion_of_earlier_versions(cls, values: Any) -> Any:
        """Earlier versions chose by the loss, and did not say so."""
        name = "recipe" if isinstance(values, Mapping) and "recipe" in values else "config"
        if not isinstance(values, Mapping) or not isinstance(values.get(name), Mapping):
            return values
        return {**values, name: {"select_by": "loss", **values[name]}}

    @staticmethod
    def of(config: FinetuneConfig) -> RunIdentity:
        """Reads the data, the model and the DeepSpeed file. Raises ConfigurationError."""
        folder = f"{config.output.name}-{uuid.uuid4().hex[:8]}" if config.storage else "checkpoints"
        return RunIdentity(
            config=config,
            data=digest(config.data),
            model=_model_digest(config.model.path),
            deepspeed=_deepspeed_digest(config),
            warmup_steps=warmup_steps(config),
            checkpoint_folder=folder,
        )

    @property
    def storage(self) -> CheckpointStorage:
        """Where its checkpoints are. Raises ConfigurationError."""
        return CheckpointStorage.of(self.config.storage or self.config.output, self.checkpoint_folder)

    def continuing(self, before: RunIdentity) -> RunIdentity:
        """This start of a run that began as `before`."""
        warmup = before.warmup_steps
        if warmup is None:  # of an earlier version
            warmup = warmup_steps(before.config)
        kept = {"warmup_steps": warmup, "checkpoint_folder": before.checkpoint_folder}
        return self.model_copy(update=kept)


def _deepspeed_digest(config: FinetuneConfig, *, of_earlier_version: bool = False) -> str | None:
    """Of the settings in the user's file; the sizes of a worker's batches do not change the result.

    Earlier versions digested the sizes, too, and knew no offloaded optimizer.
    """
    from pipeline.finetuning.step.deepspeed_settings import deepspeed_settings

    if config.deepspeed is None:
        return None
    settings = deepspeed_settings(config)
    left_out: tuple[str, ...] = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    if of_earlier_version:
        left_out = () if _CPU_OPTIMIZER in read_json(config.deepspeed) else (_CPU_OPTIMIZER,)
    for name in left_out:
        settings.pop(name, None)
    return fingerprint([settings])


def _model_digest(path: str) -> str | None:
    from tools_service.base.checkpoints import load_config

    if Path(path).is_dir():
        try:
            folders = [Path(name) for name in model_inputs(path) if Path(name).is_dir()]
            digests = [model_digest(folder) for folder in folders]
        except OSError as error:
            raise ConfigurationError(f"model.path {path!r}: cannot be read: {brief(error)}") from error
        return digests[0] if len(digests) == 1 else fingerprint(digests)
    return getattr(load_config(path, "model.path"), "_commit_hash", None)


class FinetuneManifest(RunIdentity):
    """manifest.json of a finished run."""

    versions: dict[str, str]
    created: str
    texts: dict[str, int]  # number of texts by use; also `truncated` and `tokens_per_epoch`
    best: HeldOutEvaluation  # the evaluation that chose the result; losses in nats per token
    steps: int | None = None  # optimizer steps taken; fewer than max_steps after an early stop
    wall_s: float  # seconds of the last start
    files: tuple[FileState, ...] = ()  # the model; none in manifests of earlier versions
    parameters: ParameterCounts | None = None  # of the model; none in manifests of earlier versions

    @property
    def stopped_early(self) -> bool:
        """Whether `patience` ended the run before `max_steps`."""
        return self.steps is not None and self.steps < self.config.max_steps


R = TypeVar("R", bound=RunIdentity)


def changes(before: RunIdentity, run: RunIdentity) -> list[str]:
    """What differs between two starts, in words."""
    ignore = _OPERATIONAL | ({} if before.deepspeed is None else {"deepspeed": True})
    if before.warmup_steps is None:  # an earlier version chose by the loss
        ignore |= {"select_by": True}
    if run.config.schedule == "constant":  # the rate of a step does not depend on the number of steps
        ignore |= {"max_steps": True}
    if isinstance(before, FinetuneManifest) and not before.config.keep_state:
        ignore |= {"storage": True}
    changed = changed_fields(before.config, run.config, ignore=ignore)
    if before.warmup_steps is None and before.deepspeed:  # an earlier version digested the sizes, too
        run = run.model_copy(update={"deepspeed": _deepspeed_digest(run.config, of_earlier_version=True)})
    for name in ("data", "model", "deepspeed"):
        content = getattr(before, name)
        if content is not None and content != getattr(run, name):
            changed.append(f"{name}: other content")
    return changed


def read_identity(path: Path, model: type[R]) -> R:
    try:
        return read_model(path, model)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} was not written by this version of finetune: {brief(error)}. Choose another output, or "
            "start over with --force"
        ) from error
