"""The output folder of a fine-tuning run: which run it belongs to, its state, its result.

    config.json, model.safetensors, tokenizer.json, …   the result
    generation_config.json, tools.json                  model_files.py
    README.md                                           model_card.py
    metrics.jsonl                                       metrics_log.py
    tensorboard/, wandb/, mlflow.db, tracked_run.txt    trackers.py
    checkpoints/run.json, checkpoints/step-…            while the run is unfinished, or with keep_state
    manifest.json                                       written last: the run is finished

With `storage`, the checkpoints are elsewhere (checkpoint_storage.py), in a folder that run.json names.
A folder holds one run. A start with another configuration, other data, another model or other
DeepSpeed settings is refused, and the message names what differs. A folder that holds anything else
is refused, too, and nothing in it is removed.

Contents are compared, not file times: a checkpoint must continue with the same data, and a copied
folder is the same run. (cli/steps.py skips finished steps of a chain by cheaper means.) A run counts
as finished only while its model is what the manifest says.
"""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pipeline.base.config import changed_fields
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.adapters import ParameterCounts
from pipeline.finetuning.augmented_files import digest
from pipeline.finetuning.checkpoint_storage import CheckpointStorage
from pipeline.finetuning.metrics_log import HeldOutEvaluation, require_readable
from pipeline.finetuning.schedule import warmup_steps
from pipeline.storage.kinds import FINE_TUNED
from pipeline.storage.lock import LOCK
from pipeline.storage.manifest import MANIFEST
from tools_service.base.adapters import model_inputs
from tools_service.base.errors import ConfigurationError, ToolformerError, brief
from tools_service.base.files import PART, atomic_write_json, read_model, writing
from tools_service.base.fingerprint import FileState, fingerprint
from tools_service.base.ownership import NotOwnError, OutputKind, remove_own, require_own
from tools_service.base.settings import Frozen
from tools_service.base.weights import (
    WeightsError,
    file_states,
    model_digest,
    require_headers,
    require_unchanged,
)

logger = logging.getLogger(__name__)

_RUN_FILE = "run.json"
_CHECKPOINTS = OutputKind(
    name="the checkpoints of a run of finetune",
    marks={_RUN_FILE: frozenset({"data"})},
    paths=(
        *(path.removeprefix("checkpoints/") for path in FINE_TUNED.paths if path.startswith("checkpoints/")),
        # DeepSpeed and transformers name the files in these two folders.
        r"step-\d{6,}/(state|model)/[^/]+",
        r"model/[^/]+",
    ),
)
# Fields that may differ between two starts of one run: the result does not depend on them.
_OPERATIONAL: dict[str, Any] = {
    "output": True,
    "data": True,
    "reader": True,
    "tokens": True,
    "cpus_per_worker": True,
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


def _deepspeed_digest(config: FinetuneConfig, *, with_sizes: bool = False) -> str | None:
    """Of the settings in the user's file; the sizes of a worker's batches do not change the result."""
    from pipeline.finetuning.deepspeed_settings import deepspeed_settings

    if config.deepspeed is None:
        return None
    settings = deepspeed_settings(config)
    if not with_sizes:
        for name in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
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


class PublishError(ToolformerError):
    """The trained model cannot be loaded from the output. The checkpoints are still there."""


R = TypeVar("R", bound=RunIdentity)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder `path` and its files."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def check(self, *, force: bool = False) -> None:
        """Raise NotOwnError for a folder that is not a run. Changes nothing.

        To be removed by `force`, it must hold nothing else; otherwise others may add files to a run.
        """
        if not force and FINE_TUNED.is_marked(self.path):
            return
        begun = {self.checkpoints, self.checkpoints / f"{_RUN_FILE}{PART}", self.path / LOCK}
        if not set(self.path.rglob("*")) <= begun:  # otherwise killed before run.json was written
            require_own(self.path, FINE_TUNED)

    def is_finished(self) -> bool:
        """Whether there is a result; `claim` tells whether it is the one that is asked for."""
        return (self.path / MANIFEST).exists()

    def claim(self, run: RunIdentity, *, force: bool) -> bool:
        """Reserve the folder for `run`; return whether `run` has finished. Call `check` first.

        `force` removes an earlier run. Raises ConfigurationError if the folder holds another run, or
        a finished one whose model is damaged, or if the checkpoints cannot be written.
        """
        if force:
            self._remove_earlier()
        state = self.state(run)
        if state == "finished":
            if not self.manifest().config.keep_state:
                self._remove_checkpoints()  # killed between manifest.json and this
            return True
        if state == "unfinished":
            run = run.continuing(self.begun())
            logger.info("%s: resuming the run in this folder", self.path)
        if run.config.storage:
            run.storage.require_writable()
            self._require_no_twin(run)
        if (steps := run.storage.repair_index()) > run.config.max_steps:
            raise ConfigurationError(
                f"max_steps = {run.config.max_steps}, but the run in {self.path} has taken {steps} steps: "
                "name at least as many, or start over with --force"
            )
        with writing(self.checkpoints):
            self.checkpoints.mkdir(exist_ok=True)
        atomic_write_json(self.checkpoints / _RUN_FILE, run.model_dump(mode="json"))
        if run.config.storage:
            run.storage.write(_RUN_FILE, run.model_dump_json(indent=2))
        return False

    def _require_no_twin(self, run: RunIdentity) -> None:
        """Raise ConfigurationError if this folder is a copy of one that uses the same checkpoints."""
        if other := self._twin(run):
            raise ConfigurationError(
                f"{self.path} is a copy of {other}, whose checkpoints are in storage = {run.storage}: go on "
                "there, or start over with --force"
            )

    def _twin(self, run: RunIdentity) -> Path | None:
        """The output of another run with the checkpoints of `run`."""
        try:
            stored = RunIdentity.model_validate_json(run.storage.read(_RUN_FILE))
            other = RunFolder(stored.config.output)
            same = other.begun().checkpoint_folder == run.checkpoint_folder
        except (FileNotFoundError, ValueError, ConfigurationError):
            return None
        return other.path if same and other.path != self.path else None

    def begun(self) -> RunIdentity:
        """The run that `claim` reserved the folder for."""
        return _read(self.checkpoints / _RUN_FILE, RunIdentity)

    def state(self, run: RunIdentity) -> Literal["new", "unfinished", "finished"]:
        """How far `run` is in this folder. Changes nothing; raises as `claim` does."""
        run_file, finished = self.checkpoints / _RUN_FILE, self.is_finished()
        if not finished and not run_file.exists():
            return "new"
        before = self.manifest() if finished else _read(run_file, RunIdentity)
        if changed := _changes(before, run):
            raise ConfigurationError(
                f"{self.path} holds another run; start over with --force, or choose another output. "
                f"Different: {'; '.join(changed)}"
            )
        if finished and before.config.max_steps == run.config.max_steps:
            self.require_result()
            return "finished"
        if finished:
            self._require_state(before, run)
        require_readable(self.metrics)
        return "unfinished"

    def _require_state(self, before: RunIdentity, run: RunIdentity) -> None:
        """Raise ConfigurationError unless the finished run `before` can go on to more steps."""
        done, wanted = before.config.max_steps, run.config.max_steps
        if wanted < done:
            raise ConfigurationError(
                f"max_steps = {wanted}, but the run in {self.path} finished with {done}: choose another "
                "output, or start over with --force"
            )
        if not before.config.keep_state or not (self.checkpoints / _RUN_FILE).exists():
            raise ConfigurationError(
                f"max_steps = {wanted}: the run in {self.path} finished with {done} and without keep_state, "
                "so there is no state to go on from. Choose another output, or start over with --force "
                "--keep-state"
            )

    def _remove_earlier(self) -> None:
        """Remove the run in this folder, with its checkpoints elsewhere."""
        earlier = None
        with suppress(ConfigurationError):
            earlier = self.begun()
        require_own(self.path, FINE_TUNED)
        if earlier is not None and earlier.config.storage:
            self._remove_stored(earlier)
        remove_own(self.path, FINE_TUNED, keep_folder=True)

    def require_result(self) -> None:
        """Raise ConfigurationError unless the model is what the manifest says."""
        try:
            require_unchanged(self.path, self.manifest().files)
            require_headers(self.path)
        except WeightsError as error:
            raise ConfigurationError(
                f"{self.path}: the run finished, but {error}. Bring it back, or train again with --force"
            ) from error

    def fetch_model(self, run: RunIdentity, step: int) -> Path:
        """The folder of the model after `step`; of one in an object store, a copy below the output."""
        name = f"step-{step:06d}"
        if run.storage.is_shared_folder:
            return Path(run.storage.folder) / name / "model"
        self._remove_copy()
        run.storage.download(f"{run.storage.folder}/{name}/model", self._copy)
        return self._copy

    @property
    def _copy(self) -> Path:
        return self.checkpoints / "model"

    def _remove_copy(self) -> None:
        shutil.rmtree(self._copy, ignore_errors=True)

    def publish(self, model: Path, run: RunIdentity, values: Mapping[str, Any]) -> None:
        """Copy the model in folder `model` here as the result, and mark the run as finished.

        `values` are the other fields of the manifest. The checkpoints are removed only after the copy
        was loaded. Raises PublishError if it cannot be, and leaves no result then.
        """
        from transformers import AutoModelForCausalLM

        from tools_service.base.checkpoints import load_tokenizer, require_whole

        names = [path.name for path in model.iterdir() if path.is_file()]
        with writing(self.path):
            (self.path / MANIFEST).unlink(missing_ok=True)  # of a run that went on to more steps
            # copyfile: a new file has the mode that the umask gives.
            shutil.copytree(model, self.path, dirs_exist_ok=True, copy_function=shutil.copyfile)
        try:
            require_whole(AutoModelForCausalLM, str(self.path), "output")
            load_tokenizer(str(self.path), "output")
        except ConfigurationError as error:
            for name in names:
                (self.path / name).unlink()
            raise PublishError(f"the trained model is not whole, its checkpoints stay: {error}") from error
        manifest = FinetuneManifest(**dict(run), files=tuple(file_states(self.path, names)), **values)
        atomic_write_json(self.path / MANIFEST, manifest.model_dump(mode="json"))
        if run.config.keep_state:
            self._remove_copy()
        else:
            self._remove_checkpoints()

    def _remove_checkpoints(self) -> None:
        """Remove all files of the run that the result does not need; files of others stay."""
        if not self.checkpoints.is_dir():
            return
        with suppress(ConfigurationError):  # killed before, while it was removed
            if (run := self.begun()).config.storage:
                self._remove_stored(run)
        try:
            remove_own(self.checkpoints, _CHECKPOINTS)
        except NotOwnError as error:
            logger.warning("%s", error)

    def _remove_stored(self, run: RunIdentity) -> None:
        """Remove the run's folder in its storage, unless it is another's."""
        try:
            if self._twin(run):
                return
            if run.storage.is_shared_folder:
                remove_own(Path(run.storage.folder), _CHECKPOINTS, "storage")
            else:
                run.storage.remove()
        except ToolformerError as error:
            logger.warning("%s: remove it yourself: %s", run.storage, error)

    def manifest(self) -> FinetuneManifest:
        """The manifest of a finished run. Raises ConfigurationError if it cannot be read."""
        return _read(self.path / MANIFEST, FinetuneManifest)

    def identity(self) -> RunIdentity:
        """The manifest of a finished run, else run.json. Raises ConfigurationError as `manifest` does."""
        if not self.is_finished():
            return self.begun()
        manifest = self.manifest()
        with suppress(ConfigurationError):  # without keep_state there is none
            if (begun := self.begun()).config.max_steps > manifest.config.max_steps:
                return begun
        return manifest


def _changes(before: RunIdentity, run: RunIdentity) -> list[str]:
    """What differs between two starts, in words."""
    ignore = _OPERATIONAL | ({} if before.deepspeed is None else {"deepspeed": True})
    if run.config.schedule == "constant":  # the rate of a step does not depend on the number of steps
        ignore |= {"max_steps": True}
    if isinstance(before, FinetuneManifest) and not before.config.keep_state:
        ignore |= {"storage": True}
    changed = changed_fields(before.config, run.config, ignore=ignore)
    if before.warmup_steps is None and before.deepspeed:  # an earlier version digested the sizes, too
        run = run.model_copy(update={"deepspeed": _deepspeed_digest(run.config, with_sizes=True)})
    for name in ("data", "model", "deepspeed"):
        content = getattr(before, name)
        if content is not None and content != getattr(run, name):
            changed.append(f"{name}: other content")
    return changed


def _read(path: Path, model: type[R]) -> R:
    try:
        return read_model(path, model)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} was not written by this version of finetune: {brief(error)}. Choose another output, or "
            "start over with --force"
        ) from error
