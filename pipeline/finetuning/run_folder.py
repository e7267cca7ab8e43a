"""The output folder of a fine-tuning run: which run it belongs to, its state, its result.

    config.json, model.safetensors, tokenizer.json, …   the result
    metrics.jsonl                                       metrics_log.py
    checkpoints/run.json, checkpoints/step-…            while the run is unfinished
    manifest.json                                       written last: the run is finished

A folder holds one run. A start with another configuration or other data is refused, and the message
names what differs. A folder that holds anything else is refused, too, and nothing in it is removed.

The content of C* is compared, not file times: a checkpoint must continue with the same data, and a
copied folder is the same run. (cli/steps.py skips finished steps of a chain by cheaper means.)
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.base.config import FinetuneConfig, changed_fields
from pipeline.finetuning.metrics_log import HeldOutEvaluation
from pipeline.storage.lock import LOCK
from pipeline.storage.manifest import MANIFEST
from tools_service.base.errors import ConfigurationError
from tools_service.base.files import atomic_write_json
from tools_service.base.settings import Frozen

logger = logging.getLogger(__name__)

_RUN_FILE = "run.json"
# Fields that may differ between two starts of one run: the result does not depend on them.
_OPERATIONAL: dict[str, Any] = {
    "output": True,
    "data": True,
    "cpus_per_worker": True,
    "max_failures": True,
    "gradient_checkpointing": True,
    "model": {"device", "max_batch_tokens", "gpus", "compile"},
}


class RunIdentity(Frozen):
    """checkpoints/run.json: everything that decides the result."""

    RENAMED = {"recipe": "config"}  # noqa: RUF012

    config: FinetuneConfig
    data: str  # digest of the content of C*


class FinetuneManifest(RunIdentity):
    """manifest.json of a finished run."""

    versions: dict[str, str]
    created: str
    texts: dict[str, int]  # number of texts by use; also `truncated` and `tokens_per_epoch`
    best: HeldOutEvaluation  # the evaluation that chose the result; losses in nats per token
    wall_s: float  # seconds of the last start


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

    def check(self) -> None:
        """Raise ConfigurationError if the folder holds anything but a run. Changes nothing."""
        names = {path.name for path in self.path.iterdir()} - {LOCK} if self.path.exists() else set()
        finished = (self.path / MANIFEST).exists() and self.metrics.exists()
        is_run = finished or (self.checkpoints / _RUN_FILE).exists()
        if not is_run and names - {self.checkpoints.name}:
            raise ConfigurationError(
                f"{self.path} is not empty and does not hold a run of finetune: choose another output"
            )

    def claim(self, run: RunIdentity, *, force: bool) -> bool:
        """Reserve the folder for `run`; return whether `run` has finished. Call `check` first.

        `force` removes an earlier run. Raises ConfigurationError if the folder holds another run.
        """
        for path in self.path.iterdir() if force else ():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        finished = (self.path / MANIFEST).exists()
        run_file = self.checkpoints / _RUN_FILE
        if not finished and not run_file.exists():
            self.checkpoints.mkdir(exist_ok=True)
            atomic_write_json(run_file, run.model_dump(mode="json"))
            return False
        before = self.manifest() if finished else _read(run_file, RunIdentity)
        changed = changed_fields(before.config, run.config, ignore=_OPERATIONAL)
        if before.data != run.data:
            changed.append("data: other content")
        if changed:
            raise ConfigurationError(
                f"{self.path} holds another run; start over with --force, or choose another output. "
                f"Different: {'; '.join(changed)}"
            )
        if not finished:
            logger.info("%s: resuming the run in this folder", self.path)
        return finished

    def publish(self, model: Path, manifest: FinetuneManifest) -> None:
        """Copy the model in folder `model` here as the result, and mark the run as finished."""
        shutil.copytree(model, self.path, dirs_exist_ok=True)
        atomic_write_json(self.path / MANIFEST, manifest.model_dump(mode="json"))
        shutil.rmtree(self.checkpoints)

    def manifest(self) -> FinetuneManifest:
        """The manifest of a finished run. Raises ConfigurationError if it cannot be read."""
        return _read(self.path / MANIFEST, FinetuneManifest)


def _read(path: Path, model: type[R]) -> R:
    try:
        return model.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise ConfigurationError(
            f"{path} was not written by this version of finetune; start over with --force: {error}"
        ) from error
