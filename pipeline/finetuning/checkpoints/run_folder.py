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
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.finetuning.checkpoints.run_identity import FinetuneManifest, RunIdentity, changes, read_identity
from pipeline.finetuning.watching.metrics_log import require_readable
from pipeline.storage.card import CARD, edited_card
from pipeline.storage.kinds import FINE_TUNED
from pipeline.storage.lock import LOCK
from pipeline.storage.manifest import MANIFEST
from tools_service.base.errors import ConfigurationError, ToolformerError
from tools_service.base.files import PART, atomic_write, atomic_write_json, writing
from tools_service.base.ownership import NotOwnError, OutputKind, remove_own, require_own
from tools_service.base.weights import (
    WeightsError,
    file_states,
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


class PublishError(ToolformerError):
    """The trained model cannot be loaded from the output. The checkpoints are still there."""


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
        begun = {
            self.checkpoints,
            self.checkpoints / f"{_RUN_FILE}{PART}",
            self.path / LOCK,
            self.path / CARD,
        }
        if not set(self.path.rglob("*")) <= begun:  # otherwise killed before run.json was written
            require_own(self.path, FINE_TUNED)

    def is_finished(self) -> bool:
        """Whether there is a result; `claim` tells whether it is the one that is asked for."""
        return (self.path / MANIFEST).exists()

    def claim(self, run: RunIdentity, *, force: bool) -> bool:
        """Reserve the folder for `run`; return whether `run` has finished. Call `check` first.

        `force` removes an earlier run, but not a card that a user edited. Raises ConfigurationError if
        the folder holds another run, or a finished one whose model is damaged, or if the checkpoints
        cannot be written.
        """
        if force:
            if run.config.storage:
                run.storage.require_writable()  # before anything is removed
            card = edited_card(self.path)
            self._remove_earlier()
            if card is not None:
                atomic_write(self.path / CARD, card)
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
        return read_identity(self.checkpoints / _RUN_FILE, RunIdentity)

    def state(self, run: RunIdentity) -> Literal["new", "unfinished", "finished"]:
        """How far `run` is in this folder. Changes nothing; raises as `claim` does."""
        run_file, finished = self.checkpoints / _RUN_FILE, self.is_finished()
        if not finished and not run_file.exists():
            return "new"
        before = self.manifest() if finished else read_identity(run_file, RunIdentity)
        if changed := changes(before, run):
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

    @property
    def merged(self) -> Path:
        """Where a model is written whose adapter is added to its weights."""
        return self.checkpoints / "merged"

    def _remove_copy(self) -> None:
        for folder in (self._copy, self.merged):
            shutil.rmtree(folder, ignore_errors=True)

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
        return read_identity(self.path / MANIFEST, FinetuneManifest)

    def identity(self) -> RunIdentity:
        """The manifest of a finished run, else run.json. Raises ConfigurationError as `manifest` does."""
        if not self.is_finished():
            return self.begun()
        manifest = self.manifest()
        with suppress(ConfigurationError):  # without keep_state there is none
            if (begun := self.begun()).config.max_steps > manifest.config.max_steps:
                return begun
        return manifest
