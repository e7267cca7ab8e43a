"""The output folder of a fine-tuning run: which run it belongs to, its state, its result.

    config.json, model.safetensors, tokenizer.json, …   the result
    metrics.jsonl                                       metrics_log.py
    checkpoints/run.json, checkpoints/step-…            while the run is unfinished
    manifest.json                                       written last: the run is finished

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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pipeline.base.config import changed_fields
from pipeline.base.finetune_config import FinetuneConfig
from pipeline.finetuning.examples import digest
from pipeline.finetuning.metrics_log import HeldOutEvaluation, require_readable
from pipeline.storage.kinds import FINE_TUNED
from pipeline.storage.lock import LOCK
from pipeline.storage.manifest import MANIFEST
from tools_service.base.errors import ConfigurationError, ToolformerError, brief
from tools_service.base.files import PART, atomic_write_json, read_json, read_model, writing
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
_INDEX = "checkpoint_manager_snapshot.json"  # Ray Train's list of checkpoints
_CHECKPOINTS = OutputKind(
    name="the checkpoints of a run of finetune",
    marks={_RUN_FILE: frozenset({"data"})},
    paths=(
        *(path.removeprefix("checkpoints/") for path in FINE_TUNED.paths if path.startswith("checkpoints/")),
        # DeepSpeed and transformers name the files in these two folders.
        r"step-\d{6,}/(state|model)/[^/]+",
    ),
)
# Fields that may differ between two starts of one run: the result does not depend on them.
_OPERATIONAL: dict[str, Any] = {
    "output": True,
    "data": True,
    "cpus_per_worker": True,
    "max_failures": True,
    "gradient_checkpointing": True,
    "probe_prompts": True,
    "probe_tokens": True,
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

    @staticmethod
    def of(config: FinetuneConfig) -> RunIdentity:
        """Reads the data, the model and the DeepSpeed file. Raises ConfigurationError."""
        from pipeline.finetuning.deepspeed_settings import deepspeed_settings

        settings = fingerprint([deepspeed_settings(config)]) if config.deepspeed else None
        return RunIdentity(
            config=config,
            data=digest(config.data),
            model=_model_digest(config.model.path),
            deepspeed=settings,
        )


def _model_digest(path: str) -> str | None:
    from tools_service.base.checkpoints import load_config

    if Path(path).is_dir():
        try:
            return model_digest(Path(path))
        except OSError as error:
            raise ConfigurationError(f"model.path {path!r}: cannot be read: {brief(error)}") from error
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
        a finished one whose model is damaged.
        """
        if force:
            remove_own(self.path, FINE_TUNED, keep_folder=True)
        state = self.state(run)
        if state == "new":
            with writing(self.checkpoints):
                self.checkpoints.mkdir(exist_ok=True)
            atomic_write_json(self.checkpoints / _RUN_FILE, run.model_dump(mode="json"))
        elif state == "finished":
            self._remove_checkpoints()  # killed between manifest.json and this
        else:
            logger.info("%s: resuming the run in this folder", self.path)
            self._remove_damaged_index()
        return state == "finished"

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
        if finished:
            self.require_result()
            return "finished"
        require_readable(self.metrics)
        return "unfinished"

    def _remove_damaged_index(self) -> None:
        """Ray Train rewrites its list of checkpoints in place: a crash or a full disk can leave a part.

        Without the list it starts at step 0, and the result is the same.
        """
        index = self.checkpoints / _INDEX
        try:
            read_json(index)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            logger.warning("%s was not written to its end: training starts at step 0 (%s)", index, error)
            with writing(index):
                index.unlink()

    def require_result(self) -> None:
        """Raise ConfigurationError unless the model is what the manifest says."""
        try:
            require_unchanged(self.path, self.manifest().files)
            require_headers(self.path)
        except WeightsError as error:
            raise ConfigurationError(
                f"{self.path}: the run finished, but {error}. Bring it back, or train again with --force"
            ) from error

    def publish(self, model: Path, run: RunIdentity, values: Mapping[str, Any]) -> None:
        """Copy the model in folder `model` here as the result, and mark the run as finished.

        `values` are the other fields of the manifest. The checkpoints are removed only after the copy
        was loaded. Raises PublishError if it cannot be, and leaves no result then.
        """
        from transformers import AutoModelForCausalLM

        from tools_service.base.checkpoints import load_tokenizer, require_whole

        names = [path.name for path in model.iterdir() if path.is_file()]
        with writing(self.path):
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
        self._remove_checkpoints()

    def _remove_checkpoints(self) -> None:
        """Remove all files of the run that the result does not need; files of others stay."""
        if not self.checkpoints.is_dir():
            return
        try:
            remove_own(self.checkpoints, _CHECKPOINTS)
        except NotOwnError as error:
            logger.warning("%s", error)

    def manifest(self) -> FinetuneManifest:
        """The manifest of a finished run. Raises ConfigurationError if it cannot be read."""
        return _read(self.path / MANIFEST, FinetuneManifest)

    def identity(self) -> RunIdentity:
        """The manifest of a finished run, else run.json. Raises ConfigurationError as `manifest` does."""
        return self.manifest() if self.is_finished() else _read(self.checkpoints / _RUN_FILE, RunIdentity)


def _changes(before: RunIdentity, run: RunIdentity) -> list[str]:
    """What differs between two starts, in words."""
    ignore = _OPERATIONAL | ({} if before.deepspeed is None else {"deepspeed": True})
    changed = changed_fields(before.config, run.config, ignore=ignore)
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
